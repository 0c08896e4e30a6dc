"""Time every DCNv2 layer of dla_34 and resdcn_18 at 512x512, ours beside everything else.

    python -m benchmarks.dcnv2 [--precision fp16,tf32,fp32] [--models dla_34] [--batch 1,8,32]

Every contender runs in a process of its own. What its timed runs wrote is checked against FP64. A layer that
fails, hangs or is wrong is a line in the report. Writes dcnv2.json and dcnv2.md.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch

from benchmarks import dcnv2_report, report
from benchmarks.dcnv2_worker import CONTENDERS, Spec
from benchmarks.report import choices, numbers
from benchmarks.roofline import ELEMENT_BYTES, NETWORKS
from benchmarks.workers import Worker, with_cublas_12

DEVICE_CONTENDERS = {
    "cuda": ("dcnv2", "torchvision", "compile", "nvidia", "tensorrt-convolution", "cudnn-convolution"),
    "cpu": ("torchvision", "onnxruntime"),
}
DEVICE_PRECISIONS = {"cuda": ("fp16", "tf32", "fp32"), "cpu": ("fp32",)}

FAILURES = 3
"""After so many layers that ended its process, a contender's other layers are left out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("found no CUDA device, expected one: give --device cpu")
    options.precision = options.precision or DEVICE_PRECISIONS[options.device]
    options.contenders = options.contenders or DEVICE_CONTENDERS[options.device]
    try:
        measure(options)
    except OSError as error:
        print(f"benchmarks.dcnv2: {error}", file=sys.stderr)
        return 1
    return 0


def measure(options: argparse.Namespace) -> None:
    """Measure what the options ask for; writes the report after each contender."""
    shapes = dict.fromkeys(shape for network in options.models for shape in NETWORKS[network])
    rows: list[dict[str, Any]] = [
        {"precision": precision, "layer": str(shape), "shape": astuple(shape), "batch": batch}
        | {"flops": shape.flops(batch), "bytes": shape.bytes(batch, ELEMENT_BYTES[precision])}
        | {"us": {}, "error": {}, "skipped": {}, "facts": {}}
        for precision in options.precision
        for batch in options.batch
        for shape in shapes
    ]
    results: dict[str, Any] = {
        "environment": report.environment(),
        "device": options.device,
        "models": options.models,
        "batch": options.batch,
        "ceilings": {precision: {} for precision in options.precision},
        "layers": rows,
    }
    for precision in options.precision:
        for contender in options.contenders:
            # What others run in place of INT8 is FP16, which has its own rows.
            if precision == "int8" and contender != dcnv2_report.OURS:
                continue
            own = [row for row in rows if row["precision"] == precision]
            run_contender(contender, precision, own, results["ceilings"][precision], options)
            print(dcnv2_report.line(contender, precision, own), file=sys.stderr)
            dcnv2_report.write(options.output_dir, results)
    print(f"wrote {options.output_dir / 'dcnv2.md'}")


def run_contender(
    contender: str,
    precision: str,
    rows: Sequence[dict[str, Any]],
    ceilings: dict[str, Any],
    options: argparse.Namespace,
) -> None:
    """Adds to each row what the contender needs for its layer, or why there is no such figure.

    Args:
        contender: One of `CONTENDERS`.
        precision: Of the rows.
        rows: Layers.
        ceilings: Where what the GPU reached is added, by contender.
        options: Of the command line.
    """
    left = list(rows)
    reason = ""
    for _ in range(FAILURES):
        left, reason = _run_process(contender, precision, left, ceilings, options)
        if not left:
            return
        if reason:
            break
    for row in left:
        row["skipped"][contender] = reason or f"left out after {FAILURES} failures"


def _run_process(
    contender: str,
    precision: str,
    rows: Sequence[dict[str, Any]],
    ceilings: dict[str, Any],
    options: argparse.Namespace,
) -> tuple[list[dict[str, Any]], str]:
    """One process, to its end or the first layer that ends it.

    Returns:
        The rows that are left to do, and why the contender cannot do them, if it said so.
    """
    left = list(rows)
    with tempfile.TemporaryDirectory() as name:
        spec = Spec(
            contender=contender,
            precision=precision,
            layers=[(*row["shape"], row["batch"]) for row in rows],
            batches=options.batch,
            repeats=options.repeats,
            device=options.device,
            library=str(options.library),
        )
        path = Path(name, "spec.json")
        path.write_text(json.dumps(asdict(spec)), encoding="utf-8")
        command = ["-m", "benchmarks.dcnv2_worker", str(path)]
        environment = with_cublas_12(Path(name)) if contender == "nvidia" else None
        with Worker(command, timeout_s=options.timeout_s, environment=environment) as worker:
            for said in worker.events():
                event = said.pop("event")
                if event == "ceilings":
                    ceilings[contender] = said
                elif event == "skipped":
                    return left, said["reason"]
                elif event == "failed" and left:
                    left.pop(0)["skipped"][contender] = f"failed: {said['reason']}"
                elif event == "layer":
                    row = left.pop(0)
                    if "skipped" in said:
                        row["skipped"][contender] = said["skipped"]
                    else:
                        row["us"][contender] = said.pop("us")
                        row["error"][contender] = said.pop("error")
                        row["facts"][contender] = said
    return left, ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.dcnv2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--library",
        type=Path,
        default=Path("build/kernel/libdcnv2_kernel.so"),
        help="our kernels, as ci/gpu/kernel builds them",
    )
    parser.add_argument("--models", type=choices(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--contenders", type=choices(CONTENDERS), help="default: all that the device can run")
    parser.add_argument(
        "--precision", type=choices(ELEMENT_BYTES), help="default: fp16,tf32,fp32; on a CPU fp32"
    )
    parser.add_argument("--batch", type=numbers, default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=15, help="rounds through all input sets")
    parser.add_argument("--timeout-s", type=float, default=120, help="of one layer")
    parser.add_argument("--device", choices=DEVICE_CONTENDERS, default="cuda")
    parser.add_argument("--output-dir", type=Path, default=Path("out/benchmarks"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
