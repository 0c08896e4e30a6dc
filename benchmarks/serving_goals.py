"""The goals of serving, from what `ci/gpu/serving` measured.

python -m benchmarks.serving_goals FOLDER ANNOTATIONS
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.triton_server import STEPS
from clients import coco

Rows = list[dict[str, Any]]

# Network, kind of request, figure of the comparison, kind of shared memory (any: the best), and the goal.
SHARES = (
    ("dla_34", "jpeg", 0.9),
    ("dla_34", "jpeg-640x480", 0.9),
    ("dla_34", "frame", 0.9),
    ("resdcn_18", "jpeg", 0.5),
    ("resdcn_18", "frames-8", 0.85),
)
LONE = (("dla_34", "jpeg", 6.0), ("dla_34", "frame", 2.2))
GPUS = 1.9
PRECISION = 0.002
CPU = (("throughput", 0.9, None), ("latency", None, 1.15))


def main() -> int:
    """Reads every server.json below the folder; writes serving.json and serving.md there."""
    folder, annotations = map(Path, sys.argv[1:3])
    runs = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*/server.json"))
    }
    goals = [*_shares(runs), *_lone(runs), *_gpus(runs), *_cpu(runs), *_precision(folder, annotations)]
    results: dict[str, Any] = {"environment": report.environment(), "goals": goals}
    results["settings"] = _settings(runs)
    text = (
        f"# Serving\n\n{report.environment_lines(results['environment'])}\n"
        f"{report.goals_table(goals)}\n"
        f"## Where the mean request's milliseconds go, at saturation\n\n{_breakdowns(runs)}\n"
        f"## What each setting is worth\n\n{_settings_table(results['settings'])}"
    )
    report.write(folder, "serving", results=results, markdown=text)
    print(text)
    return 0


def _compared(runs: dict[str, Any], *, network: str, request: str) -> Rows:
    """The comparisons of one GPU's runs with the settings as they are."""
    return [
        one
        for name, run in runs.items()
        for one in run["comparison"]
        if not run["changes"]
        and not name.endswith(("-cpu", "-mps", "-gpus-1", "-gpus-2"))
        and (one["network"], one["request"]) == (network, request)
    ]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _shares(runs: dict[str, Any]) -> Rows:
    goals = []
    for network, request, least in SHARES:
        ratios = [one["throughput"]["ratio"] for one in _compared(runs, network=network, request=request)]
        best = max((ratio for ratio in ratios if ratio is not None), default=None)
        goals.append(report.goal(f"{network}, {request}: served / engine", best, at_least=least))
    return goals


def _lone(runs: dict[str, Any]) -> Rows:
    goals = []
    for network, request, most in LONE:
        times = [
            one["latency"]["server"]
            for one in _compared(runs, network=network, request=request)
            if one["shared_memory"] == "system"
        ]
        goals.append(
            report.goal(f"{network}, lone {request}: p50, ms", min(times, default=None), at_most=most)
        )
    return goals


def _gpus(runs: dict[str, Any]) -> Rows:
    best = {
        count: max(one["throughput"]["server"] for one in run["comparison"])
        for count in (1, 2)
        if (run := runs.get(f"dla_34-gpus-{count}"))
    }
    found = best[2] / best[1] if len(best) == 2 else None
    return [report.goal("dla_34, frames-8: two GPUs / one", found, at_least=GPUS)]


def _cpu(runs: dict[str, Any]) -> Rows:
    comparison = runs.get("coins-cpu", {}).get("comparison", [])
    goals = []
    for figure, least, most in CPU:
        for request in ("jpeg", "frame"):
            found = [one[figure]["ratio"] for one in comparison if one["request"] == request]
            best = (max if least else min)(found, default=None)
            name = f"CPU, narrow network, {request}: {figure} / one process"
            goals.append(report.goal(name, best, at_least=least, at_most=most))
    return goals


def _precision(folder: Path, annotations: Path) -> Rows:
    found = {}
    for device in ("cpu", "gpu"):
        path = folder / f"bccd-{device}.json"
        if path.exists():
            ids = coco.Annotations.read(annotations).image_ids.values()
            found[device] = coco.average_precision(
                annotations, json.loads(path.read_text(encoding="utf-8")), ids
            )["AP"]
    difference = abs(found["cpu"] - found["gpu"]) if len(found) == 2 else None
    return [report.goal("bccd_dla_34: AP, CPU's decoding less GPU's", difference, at_most=PRECISION)]


def _settings(runs: dict[str, Any]) -> Rows:
    """The throughput at saturation and the p50 alone of each measured change."""
    return [
        {
            "run": name,
            "request": one["request"],
            "shared_memory": one["shared_memory"],
            "in_flight": one["concurrency"],
            "throughput": one["throughput"]["server"],
            "share": one["throughput"]["ratio"],
            "p50_ms": one["latency"]["server"],
        }
        for name, run in runs.items()
        for one in run["comparison"]
    ]


def _settings_table(settings: Rows) -> str:
    columns = ["run", "request", "shared memory", "in flight", "pictures/s", "of the engine", "lone p50, ms"]
    return report.markdown_table(columns, [list(row.values()) for row in settings])


def _breakdowns(runs: dict[str, Any]) -> str:
    steps = [name for step in STEPS for name in (f"{step}_queue", step)]
    parts = ["transport", "handover", *steps]
    further = {"GPU, %": "gpu_percent", "JPEG engine, %": "jpeg_percent", "GPU memory, MiB": "memory_mib"}
    table = []
    for name, run in runs.items():
        for row in run["rows"]:
            if row["load"] == "saturation" and "concurrency" in row and row["repeat"] == 0:
                figures = [row["breakdown_ms"].get(part) for part in parts]
                table.append(
                    [name, row["request"], row["shared_memory"], row["throughput"], row["batch"], *figures]
                    + [row.get(key) for key in further.values()]
                )
    columns = ["run", "request", "shared memory", "pictures/s", "batch"]
    return report.markdown_table([*columns, *(part.replace("_", ": ") for part in parts), *further], table)


if __name__ == "__main__":
    sys.exit(main())
