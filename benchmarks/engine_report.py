"""The figures of `benchmarks.engine` as tables."""

from pathlib import Path
from typing import Any

from benchmarks import report

OURS = "plugin"

NAMES = {
    "plugin": "TensorRT FP16, this project's plugin",
    "plugin-stream": "the same without a CUDA graph",
    "nvidia": "TensorRT FP16, NVIDIA's plugin, without a CUDA graph",
    "compile": "torch.compile, reduce-overhead, FP16, channels-last",
    "eager": "PyTorch",
    "onnxruntime": "ONNX Runtime, FP32",
}


def write(output_dir: Path, results: dict[str, Any]) -> None:
    """Write engine.json and engine.md."""
    report.write(output_dir, "engine", results=results, markdown=_markdown(results))


def line(row: dict[str, Any]) -> str:
    """One contender in one line."""
    times = ", ".join(f"batch {batch} {ms:.2f} ms" for batch, ms in row["median_ms"].items())
    return f"{row['model']}, {row['contender']}: {', '.join(filter(None, [times, _remark(row)]))}"


def _markdown(results: dict[str, Any]) -> str:
    height, width = results["input_size"]
    text = (
        f"# Whole networks, {height}x{width}\n\n"
        + report.environment_lines(results["environment"])
        + "- Medians, from a frame to detections in device memory. `x`: time by that of this project's\n"
        "  plan. DCN: share of the DCNv2 layers, by TensorRT's layer profiler.\n"
    )
    rows = results["rows"]
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
    layers = row["layers_ms"].get(batch)
    share = f"{layers['dcn'] / (layers['dcn'] + layers['other']):.0%}" if layers else "-"
    return [ms, ms / ours if ours else None, 1000 * batch / ms, share]


def _remark(row: dict[str, Any]) -> str:
    return "" if row["status"] == "done" else f"{row['status']}: {row['reason']}"
