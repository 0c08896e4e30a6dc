"""The server beside the same work without it: ratios from reports of `benchmarks.server`.

    python -m benchmarks.serving FOLDER [ANNOTATIONS]

puts every NAME/server.json below the folder into one serving.json and serving.md there, and the average
precision of every COCO result NAME.json in it.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.report import ratio
from clients import coco

Row = dict[str, Any]

RATIOS = {
    "latency": ("alone", "p50_ms"),
    "throughput": ("saturation", "throughput"),
    "cpu": ("saturation", "cpu_ms"),
}
"""What is compared: under which load, and which figure of a row."""


def compare(rows: Iterable[Row]) -> list[Row]:
    """The server against the same work without it, for each network, request and kind of shared memory.

    Each of `latency` (p50 of one request at a time), `throughput` and `cpu` (processor time for a picture,
    both at saturation) has the medians of `server` and `without` over the repeats, their `ratio`, and the
    `low` and `high` ratio within a repeat, between which it always lies. With nothing to compare, there are
    no ratios.
    """
    compared = [row for row in rows if "repeat" in row]
    keys = dict.fromkeys((row["network"], row["request"], row.get("shared_memory")) for row in compared)
    found = []
    for network, request, memory in keys:
        if memory is None:
            continue
        own = [row for row in compared if (row["network"], row["request"]) == (network, request)]
        served = [row for row in own if row.get("shared_memory") == memory]
        without = [row for row in own if "concurrency" not in row]
        one: Row = {"network": network, "request": request, "shared_memory": memory}
        for name, (load, figure) in RATIOS.items():
            one[name] = _ratio(_by_repeat(served, load, figure), _by_repeat(without, load, figure))
        for side, figure in ((served, "concurrency"), (without, "batch")):
            one[figure] = next(iter(_by_repeat(side, "saturation", figure).values()), None)
        found.append(one)
    return found


def _by_repeat(rows: Iterable[Row], load: str, figure: str) -> dict[int, float]:
    return {row["repeat"]: row[figure] for row in rows if row["load"] == load and row[figure] is not None}


def _ratio(server: dict[int, float], without: dict[int, float]) -> dict[str, float | None]:
    middles = [median(side.values()) if side else None for side in (server, without)]
    ratios = [server[repeat] / without[repeat] for repeat in server if repeat in without]
    return {
        "server": middles[0],
        "without": middles[1],
        "ratio": ratio(*middles),
        "low": min(ratios, default=None),
        "high": max(ratios, default=None),
    }


def compared_table(compared: Iterable[Row]) -> str:
    """The result of `compare` as Markdown; in brackets the lowest and the highest ratio of a repeat."""
    return report.records(
        [
            {
                **{"network": one["network"], "request": one["request"]},
                **{"shared memory": one["shared_memory"]},
                **{"p50, ms": one["latency"]["server"], "p50 without": one["latency"]["without"]},
                "p50, ratio": _spread(one["latency"]),
                **{"pictures/s": one["throughput"]["server"], "in flight": one["concurrency"]},
                **{"pictures/s without": one["throughput"]["without"], "batch without": one["batch"]},
                **{"pictures/s, ratio": _spread(one["throughput"]), "CPU, ratio": _spread(one["cpu"])},
            }
            for one in compared
        ]
    )


def _spread(figures: dict[str, float | None]) -> str | None:
    value, low, high = (figures[name] for name in ("ratio", "low", "high"))
    return None if value is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def summary(runs: dict[str, Any]) -> list[Row]:
    """A row for each comparison of each run, with the steps of the mean request at saturation."""
    rows = []
    for name, run in runs.items():
        for one in run["comparison"]:
            row = {"run": name, "request": one["request"], "shared_memory": one["shared_memory"]}
            row |= {"in_flight": one["concurrency"], "throughput": one["throughput"]["server"]}
            row |= {"share": one["throughput"]["ratio"], "p50_ms": one["latency"]["server"]}
            for load in run["rows"]:
                same = all(load.get(key) == one[key] for key in ("network", "request", "shared_memory"))
                if same and load["load"] == "saturation" and load["repeat"] == 0:
                    row |= {
                        key: load.get(key) for key in ("batch", "gpu_percent", "jpeg_percent", "memory_mib")
                    }
                    row |= {f"{part}_ms": ms for part, ms in load["breakdown_ms"].items()}
            rows.append(row)
    return rows


def tables(results: dict[str, Any]) -> str:
    """The table of all runs; `share` is of what the engine, or one process, does without the server."""
    text = "At saturation, but for `p50_ms`, which is of one request at a time.\n\n"
    text += report.records(results["rows"])
    for name, value in results["average_precision"].items():
        text += f"\n- AP, {name}: {value:.4f}"
    return text + "\n"


def main() -> int:
    """Writes serving.json and serving.md; returns the exit code."""
    folder, *annotations = map(Path, sys.argv[1:3])
    files = sorted(folder.glob("*/server.json"))
    runs = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in files}
    results: dict[str, Any] = {"environment": report.environment(), "rows": summary(runs)}
    results["average_precision"] = {}
    for truth in filter(Path.exists, annotations):
        ids = coco.Annotations.read(truth).image_ids.values()
        for path in sorted(folder.glob("*.json")):
            rows = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(rows, list):
                results["average_precision"][path.stem] = coco.average_precision(truth, rows, ids)["AP"]
    report.write(folder, "serving", results, tables)
    print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
