"""The plugin's builds, and the TensorRT libraries of the toolchain in processes of their own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from missing import missing

ROOT = Path(__file__).parents[2]
TOOLCHAIN = ROOT / ".toolchain"
FOLDERS = {"trt10": "tensorrt-10", "trt11": "tensorrt-11", "rtx": "rtx"}
"""Folder of the toolchain by the plugin's build for it."""

SONAMES = {"trt10": "libnvinfer.so.10", "trt11": "libnvinfer.so.11", "rtx": "libtensorrt_rtx.so.1"}


@dataclass(frozen=True)
class TensorRT:
    """A TensorRT of the toolchain, in processes of its own.

    Attributes:
        kind: The plugin's build for it, a key of `FOLDERS`.
    """

    kind: str

    def environment(self, preload: Path | None = None) -> dict[str, str]:
        folder = TOOLCHAIN / FOLDERS[self.kind]
        variables = {
            "LD_LIBRARY_PATH": folder / "lib",
            "PYTHONPATH": folder / "python",
            "LD_PRELOAD": preload,
        }
        return {**os.environ, **{name: str(value) for name, value in variables.items() if value}}

    def python(
        self, code: str, *arguments: object, preload: Path | None = None
    ) -> subprocess.CompletedProcess:
        """Runs Python code that finds TensorRT as `trt`."""
        module = "tensorrt_rtx_bindings" if self.kind == "rtx" else "tensorrt_bindings"
        command = [sys.executable, "-c", f"import {module} as trt\n{code}", *map(str, arguments)]
        environment = self.environment(preload)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def find_tensorrt(kind: str) -> TensorRT:
    if not (TOOLCHAIN / FOLDERS[kind] / "lib").is_dir():
        missing(f"no .toolchain/{FOLDERS[kind]}: run ci/toolchain {FOLDERS[kind]}")
    return TensorRT(kind)


def find_library(kind: str) -> Path:
    library = ROOT / "build" / "dcnv2" / kind / "libdcnv2.so"
    if not library.is_file():
        missing(f"no build/dcnv2/{kind}/libdcnv2.so: run ci/plugin")
    return library
