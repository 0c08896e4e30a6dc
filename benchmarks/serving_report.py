"""The figures of `benchmarks.server` as tables and plots."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.triton_server import STEPS

Rows = list[dict[str, Any]]

RATIOS = {
    "latency": ("alone", "p50_ms"),
    "throughput": ("saturation", "throughput"),
    "cpu": ("saturation", "cpu_ms"),
}
"""What is compared: under which load, and which figure of a row."""

LOAD_COLUMNS = {
    "pictures/s": "throughput",
    "p50, ms": "p50_ms",
    "p95, ms": "p95_ms",
    "p99, ms": "p99_ms",
    "CPU, ms": "cpu_ms",
}


def write(output_dir: Path, results: dict[str, Any]) -> None:
    """Write server.json, server.md and server_NETWORK_MODEL.svg for each network and ensemble."""
    rows = results["rows"]
    results = results | {"comparison": compare(rows)}
    for (network, model), own in _groups(rows, "network", "model"):
        _plot(output_dir / _plot_name(network, model), f"{network}, {model}", own)
    report.write(output_dir, "server", results=results, markdown=_markdown(results))


def compare(rows: Rows) -> Rows:
    """The server against one process, for each network, model and kind of shared memory.

    Each of `latency` (p50 of one request at a time), `throughput` and `cpu` (processor time for a picture,
    both at saturation) has the medians of `server` and `process` over the repeats, their `ratio`, and the
    `low` and `high` ratio within a repeat, between which it always lies; `postprocess_ms` likewise `median`,
    `low` and `high`. Without a process, there are no ratios.
    """
    found = []
    compared = [row for row in rows if "repeat" in row]
    for (network, model, memory), served in _groups(compared, "network", "model", "shared_memory"):
        if memory is None:
            continue
        process = [
            row
            for row in compared
            if (row["network"], row["model"]) == (network, model) and "concurrency" not in row
        ]
        one = {"network": network, "model": model, "shared_memory": memory}
        for name, (load, figure) in RATIOS.items():
            one[name] = _ratio(_by_repeat(served, load, figure), _by_repeat(process, load, figure))
        steps = [row["breakdown_ms"]["postprocess"] for row in served if row["load"] == "alone"]
        one["postprocess_ms"] = {"median": median(steps), "low": min(steps), "high": max(steps)}
        one["concurrency"] = _one(served, "saturation", "concurrency")
        one["batch"] = _one(process, "saturation", "batch")
        found.append(one)
    return found


def _by_repeat(rows: Rows, load: str, figure: str) -> dict[int, float]:
    return {row["repeat"]: row[figure] for row in rows if row["load"] == load and row[figure] is not None}


def _one(rows: Rows, load: str, figure: str) -> int | None:
    return next((row[figure] for row in rows if row["load"] == load), None)


def _ratio(server: dict[int, float], process: dict[int, float]) -> dict[str, float | None]:
    middles = [median(side.values()) if side else None for side in (server, process)]
    ratios = [server[repeat] / process[repeat] for repeat in server if repeat in process]
    return {
        "server": middles[0],
        "process": middles[1],
        "ratio": middles[0] / middles[1] if middles[0] is not None and middles[1] else None,
        "low": min(ratios, default=None),
        "high": max(ratios, default=None),
    }


def _markdown(results: Mapping[str, Any]) -> str:
    rows, picture, networks = results["rows"], results["picture"], results["networks"]
    repeats = len({row["repeat"] for row in rows if "repeat" in row})
    text = (
        "# Serving\n\n"
        + report.environment_lines(results["environment"])
        + "".join(
            f"- Network {name}: {facts['arch']}, {'x'.join(map(str, facts['input_size']))}, "
            f"{facts['variant']}\n"
            for name, facts in networks.items()
        )
        + f"- Picture: {picture['size'][1]}x{picture['size'][0]} pixels, {picture['bytes'] // 1000} kB\n"
        "- Client: perf_analyzer on the same machine, gRPC; its processor time is in no column\n"
        f"- Duration: {results['minutes']:.1f} minutes\n\n"
        "## Beside the same work in one process\n\n"
        f"Medians of {repeats} repeats, in which server and process take turns; ratios are those of the\n"
        "medians, and in brackets the lowest and the highest within a repeat. Latency: p50 of one\n"
        "request at a time. Throughput: with the requests in flight and the batch size that were fastest\n"
        "in the sweep.\n\n" + _comparison_table(results["comparison"])
    )
    for (network, model), own in _groups(rows, "network", "model"):
        text += f"\n## {network}, {model}\n\n![Latency against throughput]({_plot_name(network, model)})\n\n"
        text += f"{_load_table(own)}\nWhere the mean request's milliseconds go:\n\n{_breakdown_table(own)}"
    return text


def _comparison_table(comparison: Rows) -> str:
    columns = [
        *("network", "model", "shared memory", "p50, ms", "one process", "ratio (≤ 1.15)", "pictures/s"),
        *("in flight", "one process", "batch", "ratio (≥ 0.9)", "CPU ratio", "postprocess, ms (< 0.3)"),
    ]
    table = []
    for one in comparison:
        latency, throughput, cpu = (one[name] for name in RATIOS)
        step = one["postprocess_ms"]
        table.append(
            [
                *(one["network"], one["model"], one["shared_memory"]),
                *(latency["server"], latency["process"], _spread(latency, "ratio")),
                *(throughput["server"], one["concurrency"], throughput["process"], one["batch"]),
                *(_spread(throughput, "ratio"), _spread(cpu, "ratio"), _spread(step, "median")),
            ]
        )
    return report.markdown_table(columns, table)


def _spread(figures: Mapping[str, float | None], middle: str) -> str | None:
    value, low, high = (figures[name] for name in (middle, "low", "high"))
    return None if value is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _load_table(rows: Rows) -> str:
    table = []
    for (concurrency, memory, batch), group in _loads(rows):
        load = "one process" if concurrency is None else str(concurrency)
        figures = [_median(row[name] for row in group) for name in LOAD_COLUMNS.values()]
        table.append(
            [load, memory or "", *figures, batch or median(row["batch"] for row in group), len(group)]
        )
    return report.markdown_table(["concurrency", "shared memory", *LOAD_COLUMNS, "batch", "runs"], table)


def _breakdown_table(rows: Rows) -> str:
    served = [row for row in rows if "concurrency" in row]
    parts = [name for step in STEPS for name in (f"{step}_queue", step)]
    parts = ["transport", "handover", *(part for part in parts if part in served[0]["breakdown_ms"])]
    table = []
    for (concurrency, memory), group in _groups(served, "concurrency", "shared_memory"):
        figures = [median(row["breakdown_ms"][part] for row in group) for part in parts]
        table.append([str(concurrency), memory, *figures])
    return report.markdown_table(
        ["concurrency", "shared memory", *(part.replace("_", ": ") for part in parts)], table
    )


def _plot(path: Path, title: str, rows: Rows) -> None:
    series: dict[str, list[tuple[float, float]]] = {}
    for (_, memory, _), group in _loads(rows):
        name = {None: "one process", "none": "server", "system": "server, shared memory"}[memory]
        point = median(row["throughput"] for row in group), median(row["p50_ms"] for row in group)
        series.setdefault(name, []).append(point)
    report.line_plot(
        path,
        series,
        title=f"{title}: latency against throughput",
        x_label="pictures per second",
        y_label="p50 latency, ms",
        log_y=True,
    )


def _plot_name(network: str, model: str) -> str:
    return f"server_{network}_{model}.svg"


def _loads(rows: Rows) -> Iterable[tuple[tuple, Rows]]:
    """Rows of the same load: concurrency and shared memory, or the process's batch size."""
    return _group(
        rows,
        lambda row: (
            row.get("concurrency"),
            row.get("shared_memory"),
            None if "concurrency" in row else row["batch"],
        ),
    )


def _groups(rows: Rows, *names: str) -> Iterable[tuple[tuple, Rows]]:
    return _group(rows, lambda row: tuple(row.get(name) for name in names))


def _group(rows: Rows, key: Callable[[dict[str, Any]], tuple]) -> Iterable[tuple[tuple, Rows]]:
    groups: dict[tuple, Rows] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups.items()


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
