"""The figures of `benchmarks.engine` as tables."""

from pathlib import Path
from typing import Any

from benchmarks import report

OURS = "plugin"

NAMES = {
    "plugin": "TensorRT FP16, this project's plugin",
    "plugin-stream": "the same without a CUDA graph",
    "plugin-int8": "the same in INT8 and FP16",
    "plugin-int8-plain": "INT8 in backbone and heads alone",
    "plugin-int8-offsets": "INT8 in all but DCN layers, upsampling and outputs",
    "plugin-int8-all": "INT8 in all but outputs",
    "plugin-tf32": "the same in TF32",
    "plugin-fp32": "the same in FP32",
    "nvidia": "TensorRT FP16, NVIDIA's plugin, on the default stream without a CUDA graph",
    "compile": "torch.compile, default mode, FP16, channels-last, without a CUDA graph",
    "eager": "PyTorch",
    "onnxruntime": "ONNX Runtime, FP32",
}


def write(output_dir: Path, results: dict[str, Any]) -> None:
    """Write engine.json and engine.md."""
    report.write(
        output_dir, "engine", results=results | {"goals": goals(results)}, markdown=_markdown(results)
    )


def line(row: dict[str, Any]) -> str:
    """One contender in one line."""
    times = ", ".join(f"batch {batch} {ms:.2f} ms" for batch, ms in row["median_ms"].items())
    return f"{row['model']}, {row['contender']}: {', '.join(filter(None, [times, _remark(row)]))}"


def goals(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The project's goals for dla_34 at batch 8, as `report.goal` has them."""
    rows = {row["contender"]: row for row in results["rows"] if row["model"] == "dla_34"}
    ms = {name: row["median_ms"].get(8) for name, row in rows.items()}
    ours = ms.get(OURS)
    compiled, nvidia = (ms[name] / ours if ours and ms.get(name) else None for name in ("compile", "nvidia"))
    layers = rows[OURS]["layers_ms"].get(8) if OURS in rows else None
    what = "dla_34 FP16, batch 8"
    return [
        report.goal(f"{what}: throughput by `torch.compile`'s", compiled, at_least=2),
        report.goal(f"{what}: throughput by that with NVIDIA's plugin", nvidia, at_least=2.2),
        report.goal(f"{what}: DCN layers' share of the time", share(layers), at_most=0.2),
    ]


def share(layers: dict[str, float] | None) -> float | None:
    """Of the DCN layers in the time of all; None if it is not known."""
    return layers["dcn"] / (layers["dcn"] + layers["other"]) if layers else None


def _markdown(results: dict[str, Any]) -> str:
    height, width = results["input_size"]
    text = (
        f"# Whole networks, {height}x{width}\n\n"
        + report.environment_lines(results["environment"])
        + "- Medians, from a frame to detections in device memory. `x`: time by that of this project's\n"
        "  plan. DCN: share of the DCNv2 layers, by TensorRT's layer profiler.\n"
    )
    rows = results["rows"]
    if results["device"] == "cuda":
        text += f"\n## Goals\n\n{report.goals_table(goals(results))}"
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        batches = sorted({batch for row in own for batch in row["median_ms"]})
        ours: dict[int, float] = next((row["median_ms"] for row in own if row["contender"] == OURS), {})
        columns = ["contender"]
        for batch in batches:
            columns += [f"batch {batch}, ms", "x", "pictures/s", "DCN"]
        table = []
        for row in own:
            cells: list[object] = [NAMES[row["contender"]]]
            for batch in batches:
                cells += _cells(row, batch, ours.get(batch))
            table.append([*cells, _remark(row)])
        text += f"\n## {model}\n\n{report.markdown_table([*columns, ''], table)}"
    return text


def _cells(row: dict[str, Any], batch: int, ours: float | None) -> list[object]:
    ms = row["median_ms"].get(batch)
    if ms is None:
        return [None, None, None, None]
    part = share(row["layers_ms"].get(batch))
    return [ms, ms / ours if ours else None, 1000 * batch / ms, "-" if part is None else f"{part:.0%}"]


def _remark(row: dict[str, Any]) -> str:
    return "" if row["status"] == "done" else f"{row['status']}: {row['reason']}"
