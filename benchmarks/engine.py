"""Measure whole networks: our TensorRT plan beside NVIDIA's plugin, PyTorch and ONNX Runtime.

    python -m benchmarks.engine [--models dla_34,resdcn_18] [--batch 1,8,32]

Every contender runs in a process of its own, and its outputs are compared with ONNX Runtime's on the CPU
before it is timed. One that fails, hangs or is not to be had here is a line in the report. Writes engine.json
and engine.md.

Checkpoints, ONNX files and plans are kept in --work-dir: ARCH.pth, ARCH.onnx (`export.to_onnx`), ARCH.plan
(`export.to_plan --precision fp16`) and ARCH.CONTENDER.plan of the others. Put your own there to have them
measured; a plan of ours that does not fit is built again, NVIDIA's is built each time.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from centernet_image import contract

from benchmarks import networks, report
from benchmarks.contenders import CONTENDERS
from benchmarks.report import BenchmarkError, choices, frame_size, numbers, ratio
from benchmarks.weights import pictures
from benchmarks.workers import working
from export.graphs import onnx_files
from export.networks import ARCHITECTURES
from export.verify.against_onnx import Tolerance, compare_outputs, with_heads

OURS = "plugin"
MODELS = ("dla_34", "dlav0_34", "resdcn_18", "resdcn_101")
DEVICE_CONTENDERS = {
    "cuda": (OURS, "plugin-stream", "nvidia", "compile", "onnxruntime"),
    "cpu": ("eager", "onnxruntime"),
}

TOLERANCE = Tolerance(relative=0.1, score=0.1, box_px=8, unmatched=0.3)
"""Between a contender in FP16 and FP32 on the CPU.

Random weights magnify rounding. What this is to find, layers that compute nothing or something else, leaves
no detection where it was.
"""

INT8_TOLERANCE = replace(TOLERANCE, unmatched=0.95)
"""What INT8 costs can only be told of trained weights, which is what `benchmarks.accuracy --plan` is for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return report.run("benchmarks.engine", measure, _parser().parse_args(arguments))


def measure(options: argparse.Namespace) -> None:
    """Measure what the options ask for and write the report.

    Raises:
        BenchmarkError: A network that is there has another size.
        ExportError: A network could not be exported.
    """
    results: dict[str, Any] = {"environment": report.environment(), "input_size": options.input_size}
    results |= {"device": options.device, "rows": []}
    for arch in options.models:
        path = networks.export(arch, options.work_dir, options.input_size)
        frames = pictures(max(options.batch), options.input_size, seed=1)
        expected = _reference(path, frames)
        for contender in options.contenders or DEVICE_CONTENDERS[options.device]:
            row = {"model": arch, "contender": contender} | _run(arch, contender, frames, expected, options)
            results["rows"].append(row)
            times = [f"batch {batch} {ms:.2f} ms" for batch, ms in row["median_ms"].items()]
            print(f"{arch}, {contender}: {', '.join(filter(None, [*times, _remark(row)]))}", file=sys.stderr)
            # After each: a run that is cut short has its results.
            report.write(options.output_dir, "engine", results, tables)
    print(f"wrote {options.output_dir / 'engine.md'}")


def _reference(path: Path, frames: np.ndarray) -> dict[str, np.ndarray]:
    session = onnx_files.session(with_heads(onnx.load(path)))
    (frame,) = session.get_inputs()
    if list(frame.shape[1:3]) != list(frames.shape[1:3]):
        raise BenchmarkError(
            f"{path} takes frames of {frame.shape[1]}x{frame.shape[2]}, found --input-size "
            f"{frames.shape[1]}x{frames.shape[2]}: use another --work-dir"
        )
    # What repeats the others is not asked of a contender.
    names = [output.name for output in session.get_outputs() if output.name != contract.PEAKS.name]
    # One by one: that a batch's pictures do not mix is part of the check.
    outputs = [session.run(names, {contract.FRAME.name: frame[None]}) for frame in frames]
    return {name: np.concatenate(arrays) for name, *arrays in zip(names, *outputs, strict=True)}


def _run(
    arch: str,
    contender: str,
    frames: np.ndarray,
    expected: dict[str, np.ndarray],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One contender: its status, and by batch size the check and median times."""
    row: dict[str, Any] = {"status": "failed", "reason": "ended early", "check": {}}
    row |= {"median_ms": {}, "layers_ms": {}}
    with tempfile.TemporaryDirectory() as name:
        kind = "plan" if contender in (OURS, "plugin-stream") else f"{contender}.plan"
        files = {"checkpoint": f"{arch}.pth", "onnx": f"{arch}.onnx", "plan": f"{arch}.{kind}"}
        spec: dict[str, Any] = {key: str(options.work_dir / file) for key, file in files.items()}
        spec |= {"frames": f"{name}/frames.npy", "outputs": f"{name}/outputs.npz", "contender": contender}
        spec |= {"plugin": str(options.plugin) if options.plugin else None, "batch": list(options.batch)}
        spec |= {"seconds": options.seconds, "device": options.device}
        np.save(spec["frames"], frames)
        with working("contenders", spec, timeout_s=options.timeout_s) as worker:
            for said in worker.events():
                event = said.pop("event")
                if event == "outputs":
                    batch = said["batch"]
                    with np.load(spec["outputs"]) as found:
                        wanted = {name: values[:batch] for name, values in expected.items()}
                        tolerance = INT8_TOLERANCE if "int8" in contender else TOLERANCE
                        check, *_ = compare_outputs(wanted, found, tolerance)
                    row["check"][batch] = check.facts
                    if not check.passed:
                        row |= {"status": "wrong", "reason": f"outputs differ from ONNX Runtime's: {check}"}
                        break
                    worker.answer("go")
                elif event == "times":
                    row["median_ms"][said["batch"]] = said["median_ms"]
                elif event == "layers":
                    row["layers_ms"][said.pop("batch")] = said
                # What crashes after its last word has done its work.
                elif row["status"] != "done":
                    row |= {"status": event, "reason": said.get("reason", "")}
    return row


def tables(results: dict[str, Any]) -> str:
    """The report's tables: `x` is the time by that of this project's plan, DCN the share of those layers."""
    text = "Medians, from a frame to detections in device memory.\n"
    for model in dict.fromkeys(row["model"] for row in results["rows"]):
        own = [row for row in results["rows"] if row["model"] == model]
        batches = sorted({batch for row in own for batch in row["median_ms"]}, key=int)
        ours: dict[str, float] = next((row["median_ms"] for row in own if row["contender"] == OURS), {})
        columns, lines = ["contender"], []
        for batch in batches:
            columns += [f"batch {batch}, ms", "x", "pictures/s", "DCN"]
        for row in own:
            cells: list[object] = [row["contender"]]
            for batch in batches:
                ms, layers = row["median_ms"].get(batch), row["layers_ms"].get(batch)
                cells += [ms, ratio(ms, ours.get(batch)), ratio(1000 * int(batch), ms)]
                cells.append(f"{layers['dcn'] / (layers['dcn'] + layers['other']):.0%}" if layers else None)
            lines.append([*cells, _remark(row)])
        height, width = results["input_size"]
        text += f"\n## {model}, {height}x{width}\n\n{report.table([*columns, ''], lines)}"
    return text


def _remark(row: dict[str, Any]) -> str:
    return "" if row["status"] == "done" else f"{row['status']}: {row['reason']}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=choices(ARCHITECTURES), default=MODELS, help="separated by commas")
    parser.add_argument("--contenders", type=choices(CONTENDERS), help="default: all that the device can run")
    parser.add_argument("--batch", type=numbers, default=(1, 8, 32))
    parser.add_argument("--input-size", type=frame_size, default=contract.INPUT_SIZE, metavar="HxW")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--timeout-s", type=float, default=300, help="of one step: a plan is built in one")
    parser.add_argument("--device", choices=DEVICE_CONTENDERS, default="cuda")
    parser.add_argument("--plugin", type=Path, help="libdcnv2.so, if it is not where export.to_plan looks")
    parser.add_argument("--work-dir", type=Path, default=Path("out/benchmarks/models"))
    parser.add_argument("--output-dir", type=Path, default=Path("out/benchmarks"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
