"""The figures of `benchmarks.server` as tables."""

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
    "GPU, %": "gpu_percent",
    "JPEG engine, %": "jpeg_percent",
    "GPU memory, MiB": "memory_mib",
}


def write(output_dir: Path, results: dict[str, Any]) -> None:
    """Write server.json and server.md."""
    results = results | {"comparison": compare(results["rows"])}
    report.write(output_dir, "server", results=results, markdown=_markdown(results))


def compare(rows: Rows) -> Rows:
    """The server against the same work without it, for each network, request and kind of shared memory.

    Each of `latency` (p50 of one request at a time), `throughput` and `cpu` (processor time for a picture,
    both at saturation) has the medians of `server` and `without` over the repeats, their `ratio`, and the
    `low` and `high` ratio within a repeat, between which it always lies. With nothing to compare, there are
    no ratios.
    """
    found = []
    compared = [row for row in rows if "repeat" in row]
    for (network, request, memory), served in _groups(compared, "network", "request", "shared_memory"):
        if memory is None:
            continue
        without = [
            row
            for row in compared
            if (row["network"], row["request"]) == (network, request) and "concurrency" not in row
        ]
        one = {"network": network, "request": request, "shared_memory": memory}
        for name, (load, figure) in RATIOS.items():
            one[name] = _ratio(_by_repeat(served, load, figure), _by_repeat(without, load, figure))
        one["concurrency"] = _one(served, "saturation", "concurrency")
        one["batch"] = _one(without, "saturation", "batch")
        found.append(one)
    return found


def _by_repeat(rows: Rows, load: str, figure: str) -> dict[int, float]:
    return {row["repeat"]: row[figure] for row in rows if row["load"] == load and row[figure] is not None}


def _one(rows: Rows, load: str, figure: str) -> int | None:
    return next((row[figure] for row in rows if row["load"] == load), None)


def _ratio(server: dict[int, float], without: dict[int, float]) -> dict[str, float | None]:
    middles = [median(side.values()) if side else None for side in (server, without)]
    ratios = [server[repeat] / without[repeat] for repeat in server if repeat in without]
    return {
        "server": middles[0],
        "without": middles[1],
        "ratio": middles[0] / middles[1] if middles[0] is not None and middles[1] else None,
        "low": min(ratios, default=None),
        "high": max(ratios, default=None),
    }


def _markdown(results: Mapping[str, Any]) -> str:
    rows, networks = results["rows"], results["networks"]
    repeats = len({row["repeat"] for row in rows if "repeat" in row})
    text = (
        "# Serving\n\n"
        + report.environment_lines(results["environment"])
        + "".join(
            f"- Network {name}: {facts['arch']}, {'x'.join(map(str, facts['input_size']))}, "
            f"{facts['variant']}\n"
            for name, facts in networks.items()
        )
        + "".join(f"- Changed: `{change}`\n" for change in results["changes"])
        + "- Client: perf_analyzer on the same machine, gRPC; its processor time is in no column\n"
        f"- Duration: {results['minutes']:.1f} minutes\n\n"
        f"Medians of {repeats} repeats, in which the server and what it is compared with (one process on a\n"
        "CPU, the bare engine on a GPU) take turns; in brackets the lowest and highest ratio in a repeat.\n"
        "Latency: p50 of one request at a time. Throughput: with the requests in flight and the batch size\n"
        "that were fastest in the sweep.\n\n" + _comparison_table(results["comparison"])
    )
    for (network, request), own in _groups(rows, "network", "request"):
        text += f"\n## {network}, {request}\n\n{_load_table(own)}\n"
        text += f"Where the mean request's milliseconds go:\n\n{_breakdown_table(own)}"
    return text


def _comparison_table(comparison: Rows) -> str:
    columns = [
        *("network", "request", "shared memory", "p50, ms", "without server", "ratio", "pictures/s"),
        *("in flight", "without server", "batch", "ratio", "CPU ratio"),
    ]
    table = []
    for one in comparison:
        latency, throughput, cpu = (one[name] for name in RATIOS)
        table.append(
            [
                *(one["network"], one["request"], one["shared_memory"]),
                *(latency["server"], latency["without"], _spread(latency)),
                *(throughput["server"], one["concurrency"], throughput["without"], one["batch"]),
                *(_spread(throughput), _spread(cpu)),
            ]
        )
    return report.markdown_table(columns, table)


def _spread(figures: Mapping[str, float | None]) -> str | None:
    value, low, high = (figures[name] for name in ("ratio", "low", "high"))
    return None if value is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _load_table(rows: Rows) -> str:
    known = {title: name for title, name in LOAD_COLUMNS.items() if any(name in row for row in rows)}
    table = []
    for (concurrency, memory, batch), group in _loads(rows):
        load = "without server" if concurrency is None else str(concurrency)
        figures = [_median(row.get(name) for row in group) for name in known.values()]
        table.append(
            [load, memory or "", *figures, batch or median(row["batch"] for row in group), len(group)]
        )
    return report.markdown_table(["concurrency", "shared memory", *known, "batch", "runs"], table)


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


def _loads(rows: Rows) -> Iterable[tuple[tuple, Rows]]:
    """Rows of the same load: concurrency and shared memory, or the batch size without a server."""
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
