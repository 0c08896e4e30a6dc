"""A Triton server to measure: with a plan's options, and what its processes and its GPU need.

    python -m benchmarks.triton_server REPOSITORY [--plugin LIBRARY] [--set MODEL:TEXT] -- COMMAND ...

runs the command while the server is up; `{url}` in it becomes the address of its gRPC service.
"""

import argparse
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import networks
from benchmarks.report import BenchmarkError
from server import launcher

TUNING: tuple[str, ...] = runpy.run_path(str(networks.ROOT / "ci" / "container" / "tuning.py"))["TUNING"]
"""Of the container's server; its modules are no package, since they run alone there."""


def cpu_s(pid: int | None) -> float | None:
    """Seconds of processor time that a server and its Python models have taken so far; None without one."""
    if pid is None:
        return None
    ticks = 0
    for one in launcher.family(pid):
        with suppress(OSError):  # It has ended.
            ticks += sum(map(int, launcher.stat(one)[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(
    repository: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[launcher.Server]:
    """Start `tritonserver` on a model repository, at free ports of this machine alone.

    Args:
        repository: The model repository; with a plan in it, the plan is served, else the ONNX file.
        arguments: Further ones for the server.
        environment: Variables added to this process's own.

    Yields:
        The server, when it is ready.

    Raises:
        BenchmarkError: There is no `tritonserver`, or it did not get ready.
    """
    if (repository / networks.NETWORK / "1" / "model.plan").exists():
        # No model has a configuration of this name: the default ones count.
        arguments = ("--model-config-name=gpu", *TUNING, *arguments)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        try:
            server = launcher.start(
                repository, *arguments, log=log, timeout_s=120, environment=environment or {}
            )
        except launcher.StartError as error:
            lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
            reasons = [line.strip() for line in lines if "rror" in line or "ailed" in line]
            raise BenchmarkError(": ".join([str(error).partition(";")[0], *reasons[-1:]])) from error
        try:
            yield server
        finally:
            launcher.stop(server.process, timeout_s=60)


class GpuUsage:
    """What nvidia-smi says of the first visible GPU while this is open: nothing where there is none.

    Attributes:
        figures: Means of `gpu_percent` (of the time, a kernel ran) and of `jpeg_percent` (the hardware's
            decoder), and the highest `memory_mib`.
    """

    FIELDS = ("utilization.gpu", "utilization.jpeg", "memory.used")

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "GpuUsage":
        if shutil.which("nvidia-smi"):
            query = f"--query-gpu={','.join(self.FIELDS)}"
            gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            command = ["nvidia-smi", "-i", gpu, query, "--format=csv,noheader,nounits", "-lms", "100"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        printed, _ = self._process.communicate()
        rows = [line.split(", ") for line in printed.splitlines() if line.count(",") == 2]
        for name, column in zip(
            ("gpu_percent", "jpeg_percent", "memory_mib"), zip(*rows, strict=True), strict=False
        ):
            if values := [float(value) for value in column if value.isdigit()]:
                self.figures[name] = max(values) if name == "memory_mib" else sum(values) / len(values)


def main() -> int:
    """Returns the command's exit code, or 1 if the server did not start."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.triton_server", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--plugin", type=Path, help="libdcnv2.so, preloaded into the server")
    parser.add_argument("--set", type=networks.change, action="append", default=[], metavar="MODEL:TEXT")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    environment = {"LD_PRELOAD": str(options.plugin.resolve())} if options.plugin else {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            repository = networks.changed(options.repository, options.set, Path(folder) / "repository")
            with running(repository, environment=environment) as server:
                command = [part.replace("{url}", server.grpc_url) for part in options.command]
                return subprocess.run(command).returncode
    except BenchmarkError as error:
        print(f"benchmarks.triton_server: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
