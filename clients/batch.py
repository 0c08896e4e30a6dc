#!/usr/bin/env python3
"""Detects objects in folders of millions with Ray Data: Parquet or JSON lines, restartable."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from centernet_image import contract

from clients import options, output
from clients.blocking import CenterNetClient
from clients.detections import EXTRAS
from clients.errors import CenterNetError, MisuseError, UnavailableError
from clients.tensors import Signature
from clients.transport import PORTS

if TYPE_CHECKING:
    from clients.shard_worker import Work

EXAMPLES = """examples:
  batch.py pictures out --url server-1:8001 --url server-2:8001 --workers 4
  batch.py s3://bucket/pictures out --network model.plan --gpus --workers 8
  batch.py 'shards/*.parquet' out --column image --format jsonl --network model.onnx
"""


@dataclass
class Totals:
    """What a run came to."""

    shards: int = 0
    pictures: int = 0
    failed: int = 0
    errors: int = 0


def main() -> int:
    """Runs the command line; returns the exit code: 0, or 1 if a shard could not be done."""
    parser = _parser()
    arguments = parser.parse_intermixed_args()
    *inputs, folder = arguments.inputs
    if not inputs:
        parser.error("expected INPUT... OUTPUT")
    if arguments.network and arguments.url:
        parser.error("--network and --url exclude each other")
    if arguments.plugin and not arguments.network:
        parser.error("--plugin belongs to --network")
    client = options.client_options(parser, arguments)
    with options.one_line_errors("batch.py") as program:
        if any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow", "pandas")):
            remedy = "install it, for example pip install 'centernet-triton[batch]'"
            raise MisuseError(f"found no Ray Data: {remedy}")
        # It needs pyarrow.
        from clients import shards
        from clients.shard_worker import Work

        urls = () if arguments.network else arguments.url or [f"localhost:{PORTS[arguments.protocol]}"]
        work = Work(
            folder=_new_folder(folder),
            form=arguments.format,
            threshold=arguments.threshold,
            urls=tuple(urls),
            client=client,
            network=arguments.network and arguments.network.resolve(),
            plugin=arguments.plugin and arguments.plugin.resolve(),
            batch=arguments.batch,
            gpu=arguments.gpus,
        )
        listing = shards.find(inputs, column=arguments.column, size=arguments.shard_size, note=program.say)
        _plan(work, listing.digest, len(listing.shards))
        missing = [number for number in range(len(listing.shards)) if not work.part(number).exists()]
        done = len(listing.shards) - len(missing)
        if done:
            program.say(f"{done} of {len(listing.shards)} shards are done already")
        if missing:
            work = replace(work, extras=_check(work))
            pending = [
                {"number": number, "job": pickle.dumps((work, listing.shards[number]))} for number in missing
            ]
            _sweep(work)
            program.code = _run(work, pending, arguments, program, done)
    return program.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s INPUT... OUTPUT [--url HOST:PORT]... [--network FILE] [options]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT... OUTPUT",
        help="files, folders, patterns, s3:// or gs:// URIs of pictures, Parquet files and WebDataset tars; "
        "the last is the folder for the results",
    )
    add("--format", choices=["parquet", "jsonl"], default="parquet")
    add("--threshold", type=options.threshold, help="lowest score (default: the server's)")
    add("--column", default="image", help="of Parquet files (default: %(default)s)")
    add("--shard-size", type=options.count, default=1000, metavar="N", help="pictures (default: %(default)s)")
    add("--workers", type=options.count, default=2, metavar="N", help="default: %(default)s")
    add("--ray-address", metavar="ADDRESS", help="of a cluster (default: one on this machine)")
    group = parser.add_argument_group("network, in place of servers")
    group.add_argument("--network", type=options.file, metavar="FILE", help="model.onnx or model.plan")
    group.add_argument("--gpus", action="store_true", help="one for each worker")
    group.add_argument(
        "--plugin", type=options.file, metavar="FILE", help="libdcnv2.so (default: the build's)"
    )
    group.add_argument("--batch", type=options.count, default=8, metavar="N", help="default: %(default)s")
    options.add_connection_options(parser, several=True)
    return parser


def _new_folder(text: str) -> Path:
    try:
        folder = options.new_folder(text)
    except argparse.ArgumentTypeError as error:
        raise MisuseError(f"OUTPUT: {error}") from error
    if "://" in text:
        raise MisuseError(f"OUTPUT: found '{text}', expected a folder that all workers see")
    return folder.resolve()


def _plan(work: Work, digest: str, count: int) -> None:
    """Begins a run in its folder, or makes sure that the one there is the same.

    Raises:
        MisuseError: It is another one.
    """
    path = work.folder / "_plan.json"
    plan: dict[str, Any] = {
        "inputs": digest,
        "shards": count,
        "format": work.form,
        "threshold": work.threshold,
        "model": None if work.network else work.client["model"],
        "network": work.network and hashlib.sha256(work.network.read_bytes()).hexdigest(),
        "camera": None if work.client["camera"] is None else work.client["camera"].tolist(),
    }
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name in plan if found[name] != plan[name]]
        except (KeyError, TypeError, ValueError):
            changed = ["plan"]
        if changed:
            raise MisuseError(
                f"{work.folder} is of a run with other {', '.join(changed)}: choose another folder"
            )
        return
    if work.folder.exists() and any(work.folder.iterdir()):
        raise MisuseError(f"{work.folder} is not empty and has no _plan.json: choose another folder")
    with output.beside(path) as part:
        part.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")


def _sweep(work: Work) -> None:
    """Removes what workers left behind that did not live to the end of a shard."""
    for path in work.folder.glob(".part-*"):
        path.unlink(missing_ok=True)


def _check(work: Work) -> tuple[str, ...]:
    """Asks before anything starts whether there is somebody to ask; returns `Work.extras`."""
    camera = work.client["camera"]
    if work.network:
        from centernet_image.description import Description

        try:
            description = Description.read(work.network.with_suffix(".json"))
        except (OSError, ValueError) as error:
            raise MisuseError(str(error)) from error
        task = contract.TASKS[description.task]
        names = frozenset(tensor.name for tensor in (*task.requests, *task.answers))
        return _extras(Signature(str(work.network), names), camera)
    problems = []
    for url in work.urls:
        try:
            with CenterNetClient(url, **work.client) as client:
                client.check_ready()
                signature = client.signature()
        except CenterNetError as error:
            problems.append(str(error))
        else:
            return _extras(signature, camera)
    raise UnavailableError("; ".join(problems))


def _extras(signature: Signature, camera: np.ndarray | None) -> tuple[str, ...]:
    signature.check_camera(camera)
    return tuple(name for name, tensor in EXTRAS.items() if tensor.name in signature.tensors)


def _run(
    work: Work,
    pending: list[dict[str, Any]],
    arguments: argparse.Namespace,
    program: options.Program,
    done: int,
) -> int:
    totals, begin = Totals(), time.monotonic()
    say, console = program.say, program.console
    workers = min(arguments.workers, len(pending))
    with (
        _ray(arguments.ray_address, workers, gpus=arguments.gpus),
        output.progress(console, "shards", done + len(pending), completed=done) as advance,
    ):
        for result in _results(work, pending, workers):
            if result["error"]:
                totals.errors += 1
                say(f"shard {result['number']}: {result['error']}")
                if result["error"].startswith(UnavailableError.__name__):
                    break  # The others would fail alike, each after a long wait.
                continue
            totals.shards += 1
            totals.pictures += result["pictures"]
            totals.failed += result["failed"]
            advance()
            if not console.is_terminal:
                say(f"{done + totals.shards} of {done + len(pending)} shards, {totals.pictures} pictures")
    _sweep(work)
    seconds = time.monotonic() - begin
    missing = [job["number"] for job in pending if not work.part(job["number"]).exists()]
    console.print(
        f"{totals.pictures} pictures in {totals.shards} shards, {totals.failed} of them with an error, "
        f"in {seconds:.1f} s: {totals.pictures / seconds:.1f} a second; "
        f"in {output.printable(str(work.folder))}",
        markup=False,
        soft_wrap=True,
    )
    if missing:
        names = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        say(f"not done: {len(missing)} shards ({names}); run the same command again to go on")
    return 1 if missing else 0


@contextmanager
def _ray(address: str | None, workers: int, *, gpus: bool) -> Iterator[None]:
    """Ray on this machine, for itself alone; or a cluster's."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        settings["address"] = address
    else:
        # Else it listens at the machine's own address, whatever it is told to.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        settings |= {
            "address": "local",
            "num_cpus": workers + 1,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "object_store_memory": 2**27,
        }
        if not gpus:
            settings["num_gpus"] = 0
    import ray
    import ray.exceptions

    try:
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(**settings)
        signal.signal(signal.SIGTERM, handler)  # Ray's own ends with another exit code.
        yield
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise CenterNetError(f"Ray: {error}") from error
    finally:
        ray.shutdown()


def _results(work: Work, pending: list[dict[str, Any]], workers: int) -> Iterator[dict[str, Any]]:
    """What the workers say of each shard, as they come."""
    import ray.data

    from clients.shard_worker import Worker

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    worker: Any = Worker  # Its annotations do not know classes.
    results = ray.data.from_items(pending, override_num_blocks=len(pending)).map(
        worker,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_gpus=1 if work.gpu else None,
    )
    yield from results.iter_rows()


if __name__ == "__main__":
    sys.exit(main())
