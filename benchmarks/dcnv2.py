"""Time every DCNv2 layer of dla_34 and resdcn_18 at 512x512, ours beside everything else.

    python -m benchmarks.dcnv2 [--precision fp16,tf32,fp32] [--models dla_34] [--batch 1,8,32]

Every contender runs in a process of its own. What its timed runs wrote is checked against FP64. A layer that
fails, hangs or is wrong is a line in the report. Writes dcnv2.json and dcnv2.md.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from dcnv2.library import GENERIC_TACTIC

from benchmarks import report
from benchmarks.dcnv2_worker import CONTENDERS
from benchmarks.report import choices, numbers, ratio
from benchmarks.roofline import ELEMENT_BYTES, NETWORKS
from benchmarks.workers import working

OURS = "dcnv2"
DEVICE_CONTENDERS = {
    "cuda": (OURS, "torchvision", "compile", "nvidia", "tensorrt-convolution"),
    "cpu": ("torchvision", "onnxruntime"),
}
DEVICE_PRECISIONS = {"cuda": ("fp16", "tf32", "fp32"), "cpu": ("fp32",)}

FAILURES = 3
"""After so many layers that ended its process, a contender's other layers are left out."""

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("found no CUDA device, expected one: give --device cpu")
    options.precision = options.precision or DEVICE_PRECISIONS[options.device]
    options.contenders = options.contenders or DEVICE_CONTENDERS[options.device]
    return report.run("benchmarks.dcnv2", measure, options)


def measure(options: argparse.Namespace) -> None:
    """Measure what the options ask for; writes the report after each contender."""
    shapes = dict.fromkeys(shape for network in options.models for shape in NETWORKS[network])
    rows: list[Row] = [
        {"precision": precision, "layer": str(shape), "shape": astuple(shape), "batch": batch}
        | {"flops": shape.flops(batch), "bytes": shape.bytes(batch, ELEMENT_BYTES[precision])}
        | {"us": {}, "error": {}, "skipped": {}, "facts": {}}
        for precision in options.precision
        for batch in options.batch
        for shape in shapes
    ]
    results: dict[str, Any] = {"environment": report.environment(), "device": options.device}
    results |= {"models": options.models, "batch": options.batch}
    results |= {"ceilings": {precision: {} for precision in options.precision}, "layers": rows}
    for precision in options.precision:
        own = [row for row in rows if row["precision"] == precision]
        for contender in options.contenders:
            # What others run in place of INT8 is FP16, which has its own rows.
            if precision != "int8" or contender == OURS:
                run_contender(contender, precision, own, results["ceilings"][precision], options)
                done = sum(contender in row["us"] for row in own)
                print(f"{contender}, {precision}: {done} of {len(own)} layers", file=sys.stderr)
                report.write(options.output_dir, "dcnv2", results, tables)
    print(f"wrote {options.output_dir / 'dcnv2.md'}")


def run_contender(
    contender: str, precision: str, rows: Sequence[Row], ceilings: dict[str, Any], options: argparse.Namespace
) -> None:
    """Adds to each row what the contender needs for its layer, or why there is no such figure.

    Args:
        contender: One of `CONTENDERS`.
        precision: Of the rows.
        rows: Layers.
        ceilings: Where what the GPU reached is added, by contender.
        options: Of the command line.
    """
    left, reason = list(rows), ""
    for _ in range(FAILURES):
        spec = {"contender": contender, "precision": precision, "repeats": options.repeats}
        spec |= {"layers": [(*row["shape"], row["batch"]) for row in left]}
        spec |= {"device": options.device, "library": str(options.library)}
        with working("dcnv2_worker", spec, timeout_s=options.timeout_s) as worker:
            for said in worker.events():
                event = said.pop("event")
                if event == "ceilings":
                    ceilings[contender] = said
                elif event == "skipped":
                    reason = said["reason"]
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
        if reason or not left:
            break
    for row in left:
        row["skipped"][contender] = reason or f"left out after {FAILURES} failures"


def tables(results: dict[str, Any]) -> str:
    """The report's tables: sums over each network, and layer by layer; `x` is the time by that of ours.

    The roofline is products and least traffic at the best rates that the GPU reached in the run.
    """
    text, rows = "Medians in microseconds.\n", results["layers"]
    half = {(row["layer"], row["batch"]): row for row in rows if row["precision"] == "fp16"}
    for precision, ceilings in results["ceilings"].items():
        own = [row for row in rows if row["precision"] == precision]
        best = peak(ceilings)
        text += f"\n## {precision.upper()}\n\n"
        if best:
            text += f"Best reached: {best['tflops']:.0f} TFLOP/s, {best['tb_per_s']:.2f} TB/s.\n\n"
        for network in results["models"]:
            text += f"{network}, sum of its {len(NETWORKS[network])} layers:\n\n"
            text += _sums_table(sums(own, results["batch"], network, best)) + "\n"
        text += _layers_table(own, best, {} if precision == "fp16" else half)
        reasons = dict.fromkeys(f"- {name}: {why}" for row in own for name, why in row["skipped"].items())
        text += "\n" + "".join(f"{reason}\n" for reason in reasons)
    return text


def peak(ceilings: dict[str, dict[str, float]]) -> dict[str, float] | None:
    """The best that any of the processes reached: `tflops` and `tb_per_s`."""
    if not ceilings:
        return None
    return {key: max(found[key] for found in ceilings.values()) for key in ("tflops", "tb_per_s")}


def roofline_us(row: Row, best: dict[str, float]) -> float:
    """Least time of a row's layer, microseconds."""
    return max(row["flops"] / best["tflops"], row["bytes"] / best["tb_per_s"]) / 1e6


def sums(
    rows: Sequence[Row], batches: Sequence[int], network: str, best: dict[str, float] | None
) -> dict[str, dict[str, float | None]]:
    """Microseconds of a network's layers in one precision, by contender and batch size.

    None where a layer is missing; `geometric mean` is over the batch sizes, if none is missing.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name in [*_names(rows), *(["roofline"] if best else [])]:
        found[name] = {}
        for batch in batches:
            times = {
                row["layer"]: roofline_us(row, best) if best and name == "roofline" else row["us"].get(name)
                for row in rows
                if row["batch"] == batch
            }
            layers = [times.get(str(shape)) for shape in NETWORKS[network]]
            known = [time for time in layers if time is not None]
            found[name][f"batch {batch}"] = sum(known) if len(known) == len(layers) else None
        values = [value for value in found[name].values() if value is not None]
        complete = len(values) == len(batches)
        found[name]["geometric mean"] = geometric_mean(values) if complete else None
    return found


def _sums_table(found: dict[str, dict[str, float | None]]) -> str:
    ours = found.get(OURS, {})
    columns = [text for column in next(iter(found.values()), {}) for text in (column, "x")]
    lines = [
        [name, *(cell for key, us in times.items() for cell in (us, ratio(us, ours.get(key))))]
        for name, times in found.items()
    ]
    return report.table(["", *columns], lines)


def _layers_table(
    rows: Sequence[Row], best: dict[str, float] | None, half: dict[tuple[str, int], Row]
) -> str:
    names = _names(rows)
    columns = ["layer", "batch", *names, *(f"error, {name}" for name in names)]
    columns += ["tactic", "plain kernel, x", "FP16, x", "roofline"] if OURS in names else []
    lines = []
    for row in rows:
        cells: list[object] = [row["layer"], row["batch"]]
        cells += [row[key].get(name) for key in ("us", "error") for name in names]
        if OURS in names:
            own, facts = row["us"].get(OURS), row["facts"].get(OURS, {})
            plain = facts.get("tactics_us", {}).get(str(GENERIC_TACTIC))
            fp16 = half.get((row["layer"], row["batch"]), {"us": {}})["us"].get(OURS)
            cells += [facts.get("tactic"), ratio(plain, own), ratio(fp16, own)]
            cells.append(roofline_us(row, best) if best else None)
        lines.append(cells)
    return report.table(columns, lines)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["us"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.dcnv2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    library = Path("build/kernel/libdcnv2_kernel.so")
    add("--library", type=Path, default=library, help="our kernels, as ci/gpu/kernel builds them")
    add("--models", type=choices(NETWORKS), default=list(NETWORKS))
    add("--contenders", type=choices(CONTENDERS), help="default: all that the device can run")
    add("--precision", type=choices(ELEMENT_BYTES), help="default: fp16,tf32,fp32; on a CPU fp32")
    add("--batch", type=numbers, default=[1, 8, 32])
    add("--repeats", type=int, default=15, help="rounds through all input sets")
    add("--timeout-s", type=float, default=120, help="of one layer")
    add("--device", choices=DEVICE_CONTENDERS, default="cuda")
    add("--output-dir", type=Path, default=Path("out/benchmarks"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
