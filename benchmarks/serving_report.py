"""The figures of `benchmarks.server` as tables and plots."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.triton_server import STEPS

Rows = list[dict[str, Any]]

GOALS = {"latency_ratio": "≤ 1.15", "throughput_ratio": "≥ 0.9", "postprocess_ms": "< 0.3"}

LOAD_COLUMNS = {
    "pictures/s": "throughput",
    "p50, ms": "p50_ms",
    "p95, ms": "p95_ms",
    "p99, ms": "p99_ms",
    "CPU, ms": "cpu_ms",
}


def write(output_dir: Path, results: dict[str, Any]) -> None:
    """Write server.json, server.md and, for each model, server_MODEL.svg."""
    rows = results["rows"]
    results = results | {"comparison": compare(rows)}
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model in models:
        _plot(output_dir / _plot_name(model), model, [row for row in rows if row["model"] == model])
    report.write(output_dir, "server", results=results, markdown=_markdown(results, models))


def compare(rows: Rows) -> Rows:
    """The server against one process, for each model and kind of shared memory: medians over the repeats.

    Ratios are taken within a repeat: `latency_ratio` is p50 at concurrency 1 by p50 of one picture at a time,
    `throughput_ratio` the best concurrency by the best batch size, `cpu_ratio` the least processor time for a
    picture by the least.
    """
    found = []
    for model, shared_memory in dict.fromkeys((r["model"], r.get("shared_memory")) for r in rows):
        if shared_memory is None:
            continue
        repeats = []
        for repeat in {row["repeat"] for row in rows}:
            own = [row for row in rows if row["model"] == model and row["repeat"] == repeat]
            server = [row for row in own if row.get("shared_memory") == shared_memory]
            repeats.append(_compare_repeat(server, [row for row in own if "concurrency" not in row]))
        keys = repeats[0].keys()
        medians = {key: _median(repeat[key] for repeat in repeats) for key in keys}
        found.append({"model": model, "shared_memory": shared_memory} | medians)
    return found


def _compare_repeat(server: Rows, process: Rows) -> dict[str, float | None]:
    alone = next((row for row in server if row["concurrency"] == 1), None)
    single = next((row["p50_ms"] for row in process), None)
    best = max(row["throughput"] for row in server)
    process_best = max((row["throughput"] for row in process), default=None)
    p50 = alone["p50_ms"] if alone else None
    cpu_ms = min((row["cpu_ms"] for row in server if row["cpu_ms"] is not None), default=None)
    process_cpu_ms = min((row["cpu_ms"] for row in process), default=None)
    return {
        "p50_ms": p50,
        "process_p50_ms": single,
        "latency_ratio": p50 / single if p50 and single else None,
        "throughput": best,
        "process_throughput": process_best,
        "throughput_ratio": best / process_best if process_best else None,
        "cpu_ratio": cpu_ms / process_cpu_ms if cpu_ms and process_cpu_ms else None,
        "postprocess_ms": (alone or server[0])["breakdown_ms"]["postprocess"],
    }


def _markdown(results: Mapping[str, Any], models: Iterable[str]) -> str:
    rows, network, picture = results["rows"], results["network"], results["picture"]
    height, width = network["input_size"]
    repeats = len({row["repeat"] for row in rows})
    text = (
        "# Serving\n\n"
        + report.environment_lines(results["environment"])
        + f"- Network: {network['arch']}, {height}x{width}, on {network['variant']}\n"
        f"- Picture: {picture['size'][1]}x{picture['size'][0]} pixels, {picture['bytes'] // 1000} kB\n"
        f"- Client: perf_analyzer on the same machine, gRPC; all figures are medians of {repeats} repeats\n\n"
        "## Beside the same work in one process\n\n"
        "Latency with one request in flight against one picture at a time; throughput of the best\n"
        "concurrency against that of the best batch size; least processor time for a picture, client not\n"
        "counted.\n\n" + _comparison_table(results["comparison"])
    )
    for model in models:
        own = [row for row in rows if row["model"] == model]
        text += f"\n## {model}\n\n![Latency against throughput]({_plot_name(model)})\n\n{_load_table(own)}"
        text += f"\nWhere the mean request's milliseconds go:\n\n{_breakdown_table(own)}"
    return text


def _comparison_table(comparison: Rows) -> str:
    columns = {
        "model": "model",
        "shared memory": "shared_memory",
        "p50, ms": "p50_ms",
        "one process, ms": "process_p50_ms",
        f"ratio ({GOALS['latency_ratio']})": "latency_ratio",
        "pictures/s": "throughput",
        "one process, /s": "process_throughput",
        f"ratio ({GOALS['throughput_ratio']})": "throughput_ratio",
        "CPU ratio": "cpu_ratio",
        f"postprocess, ms ({GOALS['postprocess_ms']})": "postprocess_ms",
    }
    return report.markdown_table(
        list(columns), [[row[key] for key in columns.values()] for row in comparison]
    )


def _load_table(rows: Rows) -> str:
    table = []
    for key, group in _groups(
        rows, lambda row: (row.get("concurrency"), row.get("shared_memory"), _batch(row))
    ):
        concurrency, shared_memory, batch = key
        load = "one process" if concurrency is None else f"{concurrency}"
        figures = [_median(row[name] for row in group) for name in LOAD_COLUMNS.values()]
        batch = batch or _median(row["batch"] for row in group)
        table.append([load, shared_memory or "", *figures, batch])
    columns = ["concurrency", "shared memory", *LOAD_COLUMNS, "batch"]
    return report.markdown_table(columns, table)


def _breakdown_table(rows: Rows) -> str:
    served = [row for row in rows if "concurrency" in row]
    parts = [name for step in STEPS for name in (f"{step}_queue", step)]
    parts = ["transport", "handover", *(part for part in parts if part in served[0]["breakdown_ms"])]
    table = []
    for key, group in _groups(served, lambda row: (row["concurrency"], row["shared_memory"])):
        figures = [_median(row["breakdown_ms"][part] for row in group) for part in parts]
        table.append([*map(str, key), *figures])
    return report.markdown_table(
        ["concurrency", "shared memory", *(p.replace("_", ": ") for p in parts)], table
    )


def _plot(path: Path, model: str, rows: Rows) -> None:
    series: dict[str, list[tuple[float, float]]] = {}
    for _, group in _groups(
        rows, lambda row: (row.get("concurrency"), row.get("shared_memory"), _batch(row))
    ):
        memory = group[0].get("shared_memory")
        name = {None: "one process", "none": "server", "system": "server, shared memory"}[memory]
        point = median(row["throughput"] for row in group), median(row["p50_ms"] for row in group)
        series.setdefault(name, []).append(point)
    report.line_plot(
        path,
        series,
        title=f"{model}: latency against throughput",
        x_label="pictures per second",
        y_label="p50 latency, ms",
        log_y=True,
    )


def _plot_name(model: str) -> str:
    return f"server_{model}.svg"


def _batch(row: Mapping[str, Any]) -> int | None:
    """The batch size that was chosen, rather than found."""
    return None if "concurrency" in row else row["batch"]


def _groups(rows: Rows, key: Callable[[dict[str, Any]], tuple]) -> Iterable[tuple[tuple, Rows]]:
    groups: dict[tuple, Rows] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups.items()


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
