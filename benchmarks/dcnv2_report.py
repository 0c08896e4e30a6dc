"""The figures of `benchmarks.dcnv2` as tables: sums, ratios, shares of peak, and the goals."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.roofline import NETWORKS

OURS = "dcnv2"

NAMES = {
    OURS: "this project's kernel",
    "torchvision": "torchvision",
    "compile": "torchvision, torch.compile",
    "nvidia": "NVIDIA's plugin, TensorRT",
    "tensorrt-convolution": "plain convolution, TensorRT",
    "cudnn-convolution": "plain convolution, cuDNN",
    "onnxruntime": "ONNX Runtime",
    "roofline": "roofline",
}

NOTE = """\
- Medians; inputs and outputs rotate through twice the L2 cache, weights stay. Offsets within ±2 pixels.
- Replayed as a CUDA graph: this project's kernel (mask's sigmoid included), plain convolutions. On the
  default stream without CUDA graphs, so that launching counts: torchvision, `torch.compile` (default mode,
  mask's sigmoid included), and NVIDIA's plugin, whose output is wrong in a CUDA graph.
- Roofline: products and least traffic at the best rates that this GPU reached in this run.
- `x`: time by that of this project's kernel.
"""

Row = dict[str, Any]


def write(output_dir: Path, results: dict[str, Any]) -> None:
    """Write dcnv2.json and dcnv2.md."""
    report.write(output_dir, "dcnv2", results=results | {"goals": goals(results)}, markdown=markdown(results))


def line(contender: str, precision: str, rows: Sequence[Row]) -> str:
    """One contender in one line: how many layers it did, and why not the others."""
    done = sum(contender in row["us"] for row in rows)
    reasons = dict.fromkeys(row["skipped"][contender] for row in rows if contender in row["skipped"])
    return "; ".join([f"{contender}, {precision}: {done} of {len(rows)} layers", *reasons])


def peak(ceilings: dict[str, dict[str, float]]) -> dict[str, float] | None:
    """The best that any of the processes reached: `tflops` and `tb_per_s`."""
    if not ceilings:
        return None
    return {key: max(found[key] for found in ceilings.values()) for key in ("tflops", "tb_per_s")}


def roofline_us(row: Row, ceiling: dict[str, float]) -> float:
    """Least time of a row's layer, microseconds."""
    return max(row["flops"] / ceiling["tflops"], row["bytes"] / ceiling["tb_per_s"]) / 1e6


def summary(
    rows: Sequence[Row], batches: Sequence[int], network: str, ceiling: dict[str, float] | None
) -> dict[str, dict[str, Any]]:
    """Sums over a network's layers in one precision.

    Returns:
        By contender: `us` by batch size, None where a layer is missing; and `geometric_mean_us`, None unless
        all are there.
    """
    names = list(dict.fromkeys(name for row in rows for name in row["us"]))
    sums: dict[str, dict[str, Any]] = {}
    for name in [*names, *(["roofline"] if ceiling else [])]:
        us: dict[int, float | None] = {}
        for batch in batches:
            times = {
                row["layer"]: roofline_us(row, ceiling)
                if ceiling and name == "roofline"
                else row["us"].get(name)
                for row in rows
                if row["batch"] == batch
            }
            layers = [times.get(str(shape)) for shape in NETWORKS[network]]
            us[batch] = None if None in layers else sum(time for time in layers if time is not None)
        sums[name] = {"us": us, "geometric_mean_us": geometric_mean(list(us.values()))}
    return sums


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """None if one is missing, or all."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return math.exp(sum(map(math.log, known)) / len(known))


def goals(results: dict[str, Any]) -> list[Row]:
    """The project's goals for the FP16 layers of dla_34, as `report.goal` has them."""
    rows = [row for row in results["layers"] if row["precision"] == "fp16"]
    complete = "dla_34" in results["models"] and results["batch"] == [1, 8, 32]
    sums = summary(rows, results["batch"], "dla_34", None) if complete else {}

    def ratio(name: str, *, slower: bool) -> float | None:
        ours, other = (sums.get(key, {}).get("geometric_mean_us") for key in (OURS, name))
        if not (ours and other):
            return None
        return other / ours if slower else ours / other

    dla = {str(shape) for shape in NETWORKS["dla_34"]}
    errors = [
        (row["error"].get(OURS), row["error"].get("torchvision")) for row in rows if row["layer"] in dla
    ]
    worst = max((own / theirs for own, theirs in errors if own and theirs), default=None)
    all_compared = complete and all(own and theirs for own, theirs in errors)
    what = "FP16 DCN layers of dla_34, geometric mean over batch 1, 8, 32"
    torchvision, nvidia = (ratio(name, slower=True) for name in ("torchvision", "nvidia"))
    convolution = ratio("tensorrt-convolution", slower=False)
    error = worst if all_compared else None
    return [
        report.goal(f"{what}: times faster than torchvision", torchvision, at_least=8),
        report.goal(f"{what}: times faster than NVIDIA's plugin", nvidia, at_least=5),
        report.goal(f"{what}: time by TensorRT's plain convolution", convolution, at_most=2),
        report.goal("FP16 error against FP64, by torchvision's (worst layer)", error, at_most=2),
    ]


def markdown(results: dict[str, Any]) -> str:
    """The report as a page."""
    text = f"# DCNv2 layers, 512x512\n\n{report.environment_lines(results['environment'])}"
    if results["device"] == "cuda":
        text += NOTE + f"\n## Goals\n\n{report.goals_table(goals(results))}"
    for precision, ceilings in results["ceilings"].items():
        rows = [row for row in results["layers"] if row["precision"] == precision]
        ceiling = peak(ceilings)
        text += f"\n## {precision.upper()}\n\n"
        if ceiling:
            text += f"Best reached: {ceiling['tflops']:.0f} TFLOP/s, {ceiling['tb_per_s']:.2f} TB/s.\n\n"
        for network in results["models"]:
            text += f"{network}, sum of its {len(NETWORKS[network])} layers, microseconds:\n\n"
            text += _sums_table(rows, results["batch"], network, ceiling) + "\n"
        text += "Each layer, microseconds:\n\n" + _layers_table(rows, ceiling)
        text += "".join(f"\n- {reason}" for reason in _reasons(rows)) + "\n"
    return text


def _sums_table(
    rows: Sequence[Row], batches: Sequence[int], network: str, ceiling: dict[str, float] | None
) -> str:
    sums = summary(rows, batches, network, ceiling)
    ours = sums.get(OURS, {"us": {}, "geometric_mean_us": None})
    columns = ["", *(text for batch in batches for text in (f"batch {batch}", "x")), "geometric mean", "x"]
    lines = []
    for name, found in sums.items():
        cells: list[object] = [NAMES[name]]
        for time, own in [
            *((found["us"][batch], ours["us"].get(batch)) for batch in batches),
            (found["geometric_mean_us"], ours["geometric_mean_us"]),
        ]:
            cells += [time, time / own if time and own else None]
        lines.append(cells)
    return report.markdown_table(columns, lines)


def _layers_table(rows: Sequence[Row], ceiling: dict[str, float] | None) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row["us"]))
    shares = ["roofline", "TFLOP/s, share", "TB/s, share"] if ceiling and OURS in names else []
    errors = [f"error, {name}" for name in names]
    columns = ["layer", "batch", *names, *shares, *errors, *(["tactic"] if OURS in names else [])]
    lines = []
    for row in rows:
        cells: list[object] = [row["layer"], row["batch"], *(row["us"].get(name) for name in names)]
        own = row["us"].get(OURS)
        if shares and ceiling:
            cells.append(roofline_us(row, ceiling))
            for work, key in (("flops", "tflops"), ("bytes", "tb_per_s")):
                cells.append(f"{row[work] / own / 1e6 / ceiling[key]:.0%}" if own else None)
        cells += [row["error"].get(name) for name in names]
        if OURS in names:
            cells.append(row["facts"].get(OURS, {}).get("tactic"))
        lines.append(cells)
    return report.markdown_table(columns, lines)


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Each reason once, with the layers that it is about."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, reason in row["skipped"].items():
            found.setdefault((name, reason), []).append(f"{row['layer']} batch {row['batch']}")
    return [
        f"{NAMES[name]}: {reason}" + ("" if len(layers) == len(rows) else f" ({', '.join(layers)})")
        for (name, reason), layers in found.items()
    ]
