"""Networks to measure: exported from a checkpoint, or from random weights where there is none."""

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.report import BenchmarkError

ROOT = Path(__file__).resolve().parents[1]


def export(network: str, work_dir: Path) -> Path:
    """Make a network's ONNX file and the description beside it, unless they are there and as new.

    Args:
        network: A checkpoint's path, or an architecture, which gets the random weights of
            `benchmarks.weights`.
        work_dir: Where NAME.onnx and NAME.json are kept, and NAME.pth of an architecture.

    Raises:
        BenchmarkError: It could not be exported.
    """
    checkpoint = Path(network)
    if not checkpoint.suffix:
        checkpoint = work_dir / f"{network}.pth"
        if not checkpoint.exists():
            from benchmarks.weights import make_checkpoint

            make_checkpoint(network, checkpoint)
    onnx = work_dir / f"{checkpoint.stem}.onnx"
    if onnx.exists() and onnx.stat().st_mtime >= checkpoint.stat().st_mtime:
        return onnx
    work_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "export.to_onnx", str(checkpoint), str(onnx)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise BenchmarkError(f"cannot export {network}: {lines[-1]}")
    return onnx


def repository(onnx: Path, folder: Path) -> Path:
    """Make `folder` a copy of the model repository that serves this network."""
    ignore = shutil.ignore_patterns("model.onnx*", "model.plan*", "model.json", "__pycache__")
    shutil.copytree(ROOT / "model_repository", folder, symlinks=True, ignore=ignore)
    for suffix in (".onnx", ".json"):
        link = folder / "centernet_network" / "1" / f"model{suffix}"
        link.symlink_to(onnx.with_suffix(suffix).resolve())
    return folder
