#!/usr/bin/env python3
"""Puts the network into the model repository before a pod's server starts: a plan, or the ONNX file itself.

With a cache that many pods share, one pod of each kind of GPU builds the plan while the others wait for it.
"""

import argparse
import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import settings

GPU = "nvidia-smi --query-gpu=name --format=csv,noheader --id=0"


class PrepareError(Exception):
    """The network is not in place; the text says why."""


def main() -> int:
    """Returns 0 once the network is in place, else 1."""
    options = parse(sys.argv[1:])
    try:
        if not options.model.is_file():
            raise PrepareError(f"found no {options.model}: mount the folder of the ONNX file there")
        if options.variant != "tensorrt":
            _copy(_served_names(options.model), options.into)
        elif options.cache is None:
            _build(options, options.into)
        else:
            folder = options.cache / _kind(options)
            with _locked(folder / "lock", options.wait_s):
                _build(options, folder)
                _copy({folder / name: name for name in ("model.plan", "model.json")}, options.into)
    except (PrepareError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="prepare", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="ONNX file")
    parser.add_argument("--into", type=Path, required=True, help="the network's version folder")
    parser.add_argument("--variant", choices=("tensorrt", "cuda", "cpu"), default="tensorrt")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--calibration", help="pictures for int8")
    parser.add_argument("--cache", type=Path, help="folder that the pods share")
    parser.add_argument("--wait-s", type=settings.seconds, default=1800, help="for another pod's build")
    builder = f"{sys.executable} -m export.to_plan"
    parser.add_argument("--plan-builder", type=settings.command, default=builder, help="a command")
    name = "a command that prints the GPU's name"
    parser.add_argument("--gpu-name", type=settings.command, default=GPU, help=name)
    options = parser.parse_args(arguments)
    if options.variant == "tensorrt":
        settings.check_batch(parser, options.batch, options.into)
    return options


def _served_names(model: Path) -> dict[Path, str]:
    """The ONNX file and its description by the names that the server knows; external data keeps its own."""
    data = sorted(model.parent.glob(f"{model.name}.*"))
    return {model: "model.onnx", model.with_suffix(".json"): "model.json"} | {
        path: path.name for path in data
    }


def _kind(options: argparse.Namespace) -> str:
    """A folder's name for what a plan depends on and the plan builder cannot tell apart in one file."""
    done = subprocess.run(options.gpu_name, capture_output=True, text=True, check=False)
    gpu = "-".join(done.stdout.split())
    if done.returncode or not gpu:
        raise PrepareError(f"found no GPU ({done.stderr.strip() or 'no name'}): does the pod ask for one?")
    state = hashlib.sha256(f"{options.precision} {options.batch}".encode())
    for path in _served_names(options.model):
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return f"{gpu}-{state.hexdigest()[:12]}"


def _build(options: argparse.Namespace, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [*options.plan_builder, str(options.model), str(folder / "model.plan")]
    command += ["--if-needed", "--verify", "--precision", options.precision, "--batch", options.batch]
    command += ["--timing-cache", str(folder / "timing.cache")]
    if options.calibration:
        command += ["--calibration", options.calibration]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise PrepareError(f"the plan builder ended with {code}: its own message is above")


@contextmanager
def _locked(path: Path, wait_s: float) -> Iterator[None]:
    """Holds a lock that ends with the process, whatever ends that; NFS 4 knows it, too."""
    end, waiting = time.monotonic() + wait_s, False
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    print(f"prepare: another pod builds the plan of {path.parent}: waiting", flush=True)
                    waiting = True
                if time.monotonic() >= end:
                    raise PrepareError(
                        f"another pod has held {path} for {wait_s:g} s: see its log, or raise --wait-s"
                    ) from None
                time.sleep(0.5)
        yield


def _copy(names: dict[Path, str], into: Path) -> None:
    """Copies files, each whole or not at all."""
    if missing := [path for path in names if not path.is_file()]:
        raise PrepareError(f"found no {missing[0]}: export.to_onnx writes ONNX file and description together")
    into.mkdir(parents=True, exist_ok=True)
    for path, name in names.items():
        beside = into / f".{name}.new"
        shutil.copyfile(path, beside)
        beside.replace(into / name)


if __name__ == "__main__":
    sys.exit(main())
