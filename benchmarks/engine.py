"""Measure whole networks: our TensorRT plan beside NVIDIA's plugin, PyTorch and ONNX Runtime.

    python -m benchmarks.engine [--models dla_34,resdcn_18] [--batch 1,8,32]

Every contender runs in a process of its own, and its outputs are compared with ONNX Runtime's on the CPU
before it is timed. One that fails, hangs or is not to be had here is a line in the report. Writes engine.json
and engine.md.

Checkpoints, ONNX files and plans are kept in --work-dir and not made again: ARCH.pth, ARCH.onnx
(`export.to_onnx`), ARCH.plan (`export.to_plan --precision fp16`) and ARCH.nvidia.plan. Put your own there to
have them measured.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import engine_report, report
from benchmarks.contenders import CONTENDERS, Spec
from benchmarks.report import BenchmarkError, choices, numbers
from benchmarks.weights import make_checkpoint, pictures
from export import contract
from export.networks import ARCHITECTURES
from export.plan_engine import loaded_library
from export.plan_verify import Tolerance, compare_outputs, with_heads

MODELS = ("dla_34", "dlav0_34", "resdcn_18", "resdcn_101")
DEVICE_CONTENDERS = {
    "cuda": ("plugin", "plugin-stream", "nvidia", "compile", "onnxruntime"),
    "cpu": ("eager", "onnxruntime"),
}

TOLERANCE = Tolerance(relative=0.1, score=0.1, box_px=8, unmatched=0.3)
"""Between a contender in FP16 and FP32 on the CPU.

Random weights magnify rounding. What this is to find, layers that compute nothing or something else, leaves
no detection where it was.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        measure(options)
    except (BenchmarkError, OSError) as error:
        print(f"benchmarks.engine: {error}", file=sys.stderr)
        return 1
    return 0


def measure(options: argparse.Namespace) -> None:
    """Measure what the options ask for and write the report.

    Raises:
        BenchmarkError: A network could not be exported.
    """
    environment = report.environment()
    rows = []
    for arch in options.models:
        _prepare(arch, options)
        # Of the middle size: that a batch's pictures do not mix is part of the check.
        frames = pictures(sorted(options.batch)[len(options.batch) // 2], options.input_size, seed=1)
        expected = _reference(options.work_dir / f"{arch}.onnx", frames)
        for contender in options.contenders or DEVICE_CONTENDERS[options.device]:
            row = {"model": arch, "contender": contender} | _run(arch, contender, frames, expected, options)
            rows.append(row)
            print(engine_report.line(row), file=sys.stderr)
            # After each: a run that is cut short has its results.
            results = {
                "environment": environment,
                "input_size": options.input_size,
                "device": options.device,
                "rows": rows,
            }
            engine_report.write(options.output_dir, results)
    print(f"wrote {options.output_dir / 'engine.md'}")


def _prepare(arch: str, options: argparse.Namespace) -> None:
    checkpoint, onnx_path = (options.work_dir / f"{arch}{suffix}" for suffix in (".pth", ".onnx"))
    if not checkpoint.exists():
        make_checkpoint(arch, checkpoint, input_size=options.input_size)
    if onnx_path.exists():
        return
    size = "x".join(map(str, options.input_size))
    command = ["-m", "export.to_onnx", str(checkpoint), str(onnx_path), "--input-size", size]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(
            f"cannot export {arch}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )


def _reference(onnx_path: Path, frames: np.ndarray) -> dict[str, np.ndarray]:
    import onnxruntime

    model = with_heads(onnx.load(onnx_path)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (frame,) = session.get_inputs()
    if list(frame.shape[1:3]) != list(frames.shape[1:3]):
        raise BenchmarkError(
            f"{onnx_path} takes frames of {frame.shape[1]}x{frame.shape[2]}, found --input-size "
            f"{frames.shape[1]}x{frames.shape[2]}: use another --work-dir"
        )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {contract.FRAME.name: frames}), strict=True))


def _run(
    arch: str,
    contender: str,
    frames: np.ndarray,
    expected: dict[str, np.ndarray],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One contender: its status, the check, and median times by batch size."""
    row: dict[str, Any] = {"status": "failed", "reason": "", "check": None, "median_ms": {}, "layers_ms": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kind = "nvidia.plan" if contender == "nvidia" else "plan"
        spec = Spec(
            contender=contender,
            checkpoint=str(options.work_dir / f"{arch}.pth"),
            onnx=str(options.work_dir / f"{arch}.onnx"),
            plan=str(options.work_dir / f"{arch}.{kind}"),
            plugin=str(options.plugin) if options.plugin else None,
            frames=str(folder / "frames.npy"),
            outputs=str(folder / "outputs.npz"),
            batch=options.batch,
            seconds=options.seconds,
            device=options.device,
        )
        np.save(spec.frames, frames)
        (folder / "spec.json").write_text(json.dumps(asdict(spec)))
        environment = _with_cublas_12(folder) if contender == "nvidia" else None
        for event in _worker(folder, options.timeout_s, row, environment):
            if event == "outputs":
                with np.load(spec.outputs) as found:
                    check, *_ = compare_outputs(expected, found, TOLERANCE)
                row["check"] = check.facts
                if not check.passed:
                    row |= {"status": "wrong", "reason": f"outputs differ from ONNX Runtime's: {check}"}
                    break
    return row


def _with_cublas_12(folder: Path) -> dict[str, str]:
    """An environment where NVIDIA's plugin finds the cuBLAS that PyTorch has loaded, under CUDA 12's name."""
    environment = dict(os.environ)
    library = loaded_library("libcublas.so")
    if library:
        (folder / "libcublas.so.12").symlink_to(library)
        paths = [str(folder), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
    return environment


def _worker(
    folder: Path, timeout_s: float, row: dict[str, Any], environment: dict[str, str] | None
) -> Iterator[str]:
    """Run the contender's process and put what it says into the row; yields when there are outputs to check.

    A process that hangs is ended after `timeout_s`; what it said until then stays.
    """
    with (folder / "log").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contenders", str(folder / "spec.json")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        end = time.monotonic() + timeout_s
        try:
            while (line := lines.get(timeout=max(end - time.monotonic(), 0.001))) is not None:
                said = json.loads(line)
                event = said.pop("event")
                if event == "outputs":
                    yield event
                    process.stdin.write("go\n")
                    process.stdin.flush()
                elif event == "times":
                    row["median_ms"][said["batch"]] = said["median_ms"]
                elif event == "layers":
                    row["layers_ms"][said.pop("batch")] = said
                else:
                    row |= {"status": event, "reason": said.get("reason", "")}
            process.wait(timeout=30)
        except queue.Empty:
            row |= {"status": "failed", "reason": f"hung: ended after {timeout_s:.0f} s"}
        finally:
            process.kill()
            process.wait()
        if row["status"] == "failed" and not row["reason"]:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            row["reason"] = f"ended with {process.returncode}: {last}"


def _read(stream: Any, lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        # Libraries write to standard output too.
        if line.startswith('{"event"'):
            lines.put(line)
    lines.put(None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=choices(ARCHITECTURES), default=MODELS, help="separated by commas")
    parser.add_argument("--contenders", type=choices(CONTENDERS), help="default: all that the device can run")
    parser.add_argument("--batch", type=numbers, default=(1, 8, 32))
    parser.add_argument("--input-size", type=_size, default=contract.INPUT_SIZE, metavar="HxW")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--timeout-s", type=float, default=300, help="of a contender, plan building included")
    parser.add_argument("--device", choices=DEVICE_CONTENDERS, default="cuda")
    parser.add_argument("--plugin", type=Path, help="libdcnv2.so, if it is not where export.to_plan looks")
    parser.add_argument("--work-dir", type=Path, default=Path("out/benchmarks/models"))
    parser.add_argument("--output-dir", type=Path, default=Path("out/benchmarks"))
    return parser


def _size(text: str) -> tuple[int, int]:
    sides = [int(side) for side in text.split("x") if side.isdigit()]
    if len(sides) != 2 or any(side < 1 or side % contract.SIDE_MULTIPLE for side in sides):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected HxW of multiples of {contract.SIDE_MULTIPLE}"
        )
    return sides[0], sides[1]


if __name__ == "__main__":
    sys.exit(main())
