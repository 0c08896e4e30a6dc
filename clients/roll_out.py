#!/usr/bin/env python3
"""Puts a new version of the network into a running server, and goes back if it is wrong.

The server runs with --model-control-mode=explicit (in the container: MODEL_CONTROL=explicit). No request
fails: the new network is loaded under another name, and has to answer before a client's request meets it.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from centernet_image import contract, tasks
from centernet_image.codecs.common import ImageError
from centernet_image.decode import decode
from centernet_image.description import Description
from centernet_image.geometry import warp

from clients import options
from clients.client import AsyncCenterNetClient
from clients.errors import CenterNetError, MisuseError

NETWORK = "centernet_network"
CANDIDATE = "centernet_network_candidate"
LOAD_S = 600.0
"""Longest wait for a network to be loaded."""


class RollOutError(CenterNetError):
    """The new version is not served; the old one is."""


def main() -> int:
    """Runs the command line; returns the exit code: 0, or 1 if the old version is still served."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s MODEL --model-repository DIR [--url HOST:PORT] [--header admin-key=KEY] [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("network", type=options.file, metavar="MODEL", help=".onnx or .plan, its .json beside it")
    add(
        "--model-repository",
        type=Path,
        required=True,
        metavar="DIR",
        help="the server's own, as this machine sees it",
    )
    add("--picture", type=options.file, metavar="FILE", help="one in which the network has to find something")
    add(
        "--plan-builder",
        default=f"{sys.executable} -m export.to_plan",
        metavar="COMMAND",
        help="makes a plan of an .onnx file where the server wants one (default: %(default)s)",
    )
    options.add_connection_options(parser)
    arguments = parser.parse_args()
    # To go back means to load a network.
    with options.one_line_errors("roll_out.py", grace_s=2 * LOAD_S) as program:
        program.code = asyncio.run(_main(parser, arguments, program.say))
    return program.code


async def _main(parser: argparse.ArgumentParser, arguments: argparse.Namespace, say: Any) -> int:
    # The key opens the interface over gRPC by a longer name.
    if arguments.protocol == "grpc":
        arguments.header = [
            (f"triton-grpc-protocol-{key}" if key == "admin-key" else key, value)
            for key, value in arguments.header
        ]
    folder = arguments.model_repository / NETWORK
    if not (folder / "config.pbtxt").is_file():
        raise MisuseError(
            f"{arguments.model_repository}: found no {NETWORK}/config.pbtxt, expected the server's"
        )
    async with options.async_client(parser, arguments) as client:
        await client.check_ready()
        roll_out = RollOut(client, arguments.model_repository, arguments)
        version = await roll_out.run(say)
    say(f"version {version} is served")
    return 0


class RollOut:
    """One new version of a server's network.

    Args:
        client: Of the server, with the right to load models.
        repository: The server's model repository.
        arguments: The command line's `network`, `picture` and `plan_builder`.
    """

    def __init__(self, client: AsyncCenterNetClient, repository: Path, arguments: argparse.Namespace) -> None:
        self._client, self._repository, self._arguments = client, repository, arguments
        self._picture = arguments.picture.read_bytes() if arguments.picture else None

    async def run(self, say: Any) -> int:
        """Rolls the version out and returns its number.

        Raises:
            MisuseError: It cannot replace what is served; nothing was touched.
            RollOutError: It failed; the version before is served.
        """
        old = await self._served()
        description = self._compatible(old)
        config = await self._client.config(NETWORK)
        new = max(int(path.name) for path in self._versions()) + 1
        network = self._repository / NETWORK
        # A name that is no number: the server does not see it.
        staged = network / f".{new}.new"
        candidate = self._repository / CANDIDATE
        try:
            staged.mkdir()
        except FileExistsError:
            raise MisuseError(
                f"found {staged}: another roll-out is under way; if none is, one was killed: remove it"
            ) from None
        try:
            self._stage(staged, plan=config.get("platform") == "tensorrt_plan")
            say(f"loading it beside version {old}")
            async with self._loaded_beside(candidate, staged):
                await self._check_candidate(description)
            staged.rename(network / str(new))
            try:
                await self._call("load_model", NETWORK)
                await self._check_served(new, description)
            except BaseException as error:  # A signal, too.
                (network / str(new)).rename(staged)
                await self._call("load_model", NETWORK)
                went_back = f"went back to version {await self._served()}"
                if not isinstance(error, CenterNetError):
                    say(went_back)
                    raise
                raise RollOutError(f"{went_back}: {error}") from error
        finally:
            for path in (staged, candidate):
                shutil.rmtree(path, ignore_errors=True)
        return new

    def _versions(self) -> list[Path]:
        folder = self._repository / NETWORK
        found = [path for path in folder.iterdir() if re.fullmatch(r"[1-9]\d*", path.name)]
        if not found:
            raise MisuseError(f"{folder}: found no version of the network: is this the server's repository?")
        return found

    async def _served(self) -> int:
        return max(int(version) for version in (await self._client.metadata(NETWORK))["versions"])

    def _compatible(self, old: int) -> Description:
        """The new network's description; requests that are under way while it changes must fit both."""
        try:
            beside = self._arguments.network.with_suffix(".json")
            new = Description.read(beside)
            new.check_served(beside)
            served = Description.read(self._repository / NETWORK / str(old) / "model.json")
        except (OSError, ValueError) as error:
            raise MisuseError(str(error)) from error
        remedy = "start servers with it instead, one by one (deploy/README.md)"
        if new.input_size != served.input_size:
            sizes = ["{}x{}".format(*one.input_size) for one in (new, served)]
            raise MisuseError(f"found a frame of {sizes[0]}, the server has {sizes[1]}: {remedy}")
        if new.classes[: len(served.classes)] != served.classes:
            raise MisuseError(
                f"its classes do not begin with the {len(served.classes)} that are served: {remedy}"
            )
        return new

    def _stage(self, folder: Path, *, plan: bool) -> None:
        model: Path = self._arguments.network
        if plan and model.suffix != ".plan":
            command = [
                *shlex.split(self._arguments.plan_builder),
                str(model),
                str(folder / "model.plan"),
                "--verify",
            ]
            if subprocess.run(command, check=False).returncode:
                raise RollOutError("no plan could be built (above); the server is as it was")
            return
        if not plan and model.suffix == ".plan":
            raise MisuseError(f"found {model}, the server runs ONNX files")
        shutil.copyfile(model, folder / f"model{model.suffix}")
        shutil.copyfile(model.with_suffix(".json"), folder / "model.json")
        for data in model.parent.glob(f"{model.name}.*"):
            shutil.copyfile(data, folder / data.name)

    @asynccontextmanager
    async def _loaded_beside(self, candidate: Path, staged: Path) -> AsyncIterator[None]:
        """The new version as a model of its own, which nobody asks but this program."""
        shutil.rmtree(candidate, ignore_errors=True)
        ignore = shutil.ignore_patterns("[0-9]*", ".*")
        shutil.copytree(self._repository / NETWORK, candidate, ignore=ignore)
        for config in candidate.rglob("*.pbtxt"):
            text = config.read_text(encoding="utf-8").replace(f'"{NETWORK}"', f'"{CANDIDATE}"')
            config.write_text(text, encoding="utf-8")
        (candidate / "1").symlink_to(staged.resolve())
        try:
            await self._call("load_model", CANDIDATE)
            yield
        except CenterNetError as error:
            raise RollOutError(f"the server is as it was: {error}") from error
        finally:
            await self._call("unload_model", CANDIDATE)

    async def _call(self, method: str, model: str) -> None:
        try:
            async with asyncio.timeout(LOAD_S):
                await self._client.control(method, model)
        except TimeoutError:
            raise CenterNetError(f"{method} of {model}: no answer within {LOAD_S:g} s") from None

    async def _check_candidate(self, description: Description) -> None:
        """A batch of two: a picture, and pixels at random.

        Raises:
            CenterNetError: What it answers is no answer of a detector with this description.
        """
        height, width = description.input_size
        frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
        if self._picture is not None:
            try:
                frames[0] = warp(decode(self._picture), description.input_size)
            except ImageError as error:
                raise CenterNetError(f"{self._arguments.picture}: {error}") from error
        result = await self._client.infer(CANDIDATE, {contract.FRAME: frames})
        peaks = result.as_numpy(contract.PEAKS.name)
        if peaks is None:
            raise CenterNetError(f"found no output {contract.PEAKS.name}, which its description has")
        try:
            boxes, scores, classes = tasks.split(peaks, contract.TASKS["detect"]).values()
        except ValueError as error:
            raise CenterNetError(str(error)) from error
        count = description.top_k
        if boxes.shape != (2, count, 4) or scores.shape != (2, count) or classes.shape != (2, count):
            shapes = [list(array.shape) for array in (boxes, scores, classes)]
            raise CenterNetError(f"found boxes, scores and classes of {shapes}, expected {count} a picture")
        if not (np.isfinite(boxes).all() and ((scores >= 0) & (scores <= 1)).all()):
            raise CenterNetError("found boxes that are no numbers, or scores beyond 0 to 1")
        if classes.min() < 0 or classes.max() >= len(description.classes):
            raise CenterNetError(
                f"found class {classes.max():g}, its description names {len(description.classes)} classes"
            )
        if self._picture is not None and scores[0].max() < contract.SCORE_THRESHOLD:
            raise CenterNetError(f"it finds nothing in {self._arguments.picture}")

    async def _check_served(self, version: int, description: Description) -> None:
        """The same through the whole ensemble."""
        if (found := await self._served()) != version:
            raise CenterNetError(f"version {found} is served, expected {version}")
        picture = np.zeros((*description.input_size, 3), np.uint8) if self._picture is None else self._picture
        detections = await self._client.detect(picture)
        unknown = set(detections.labels) - set(description.classes)
        if unknown or (self._picture is not None and not len(detections)):
            raise CenterNetError(
                f"the ensemble answers {len(detections)} detections with the names {unknown}"
            )


if __name__ == "__main__":
    sys.exit(main())
