"""What every benchmark reports with its figures: machine, versions and command; as JSON, Markdown and SVG."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from centernet_image import contract

PACKAGES = (
    *("numpy", "opencv-python-headless", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision"),
    *("tensorrt", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings", "polygraphy", "tritonclient"),
)


class BenchmarkError(Exception):
    """A run that cannot go on; its text is one line that says what to do."""


def environment() -> dict[str, Any]:
    """Describe this run: when, by which command, of which revision, on which machine, with which versions."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
        "revision": _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "load_average": os.getloadavg()[0],
            "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
            "system": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        },
        "versions": {"python": platform.python_version()} | _versions(),
    }


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: numbers with three significant digits and to the right, None as a hyphen."""
    rows = list(rows)
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    rule = ["--:" if right else "---" for right in numeric]
    lines = [columns, rule, *([_cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def environment_lines(described: Mapping[str, Any]) -> str:
    """The result of `environment` as a Markdown list."""
    machine = described["machine"]
    hardware = [
        machine["gpu"],
        f"{machine['cores']} cores of {machine['cpu']}",
        f"{machine['memory_gib']} GiB",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    return (
        f"- Command: `{described['command']}`\n"
        f"- Machine: {', '.join(filter(None, hardware))}, {machine['system']}, "
        f"load average {machine['load_average']:.1f} at the start\n"
        f"- Versions: {versions}; revision {described['revision']}; {described['date']}\n"
    )


def write(output_dir: Path, name: str, *, results: Mapping[str, Any], markdown: str) -> None:
    """Write `name`.json and `name`.md into the folder, which is made if need be."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(results, indent=2) + "\n"), (".md", markdown)):
        partial = output_dir / f"{name}{suffix}.part"
        partial.write_text(text, encoding="utf-8")
        partial.replace(output_dir / f"{name}{suffix}")


def goal(
    what: str, found: float | None, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """One of the project's goals: what was found, None if nothing was, and whether it is reached."""
    limit = at_most if at_least is None else at_least
    assert limit is not None
    expected = f"at {'most' if at_least is None else 'least'} {limit:g}"
    reached = None if found is None else found <= limit if at_least is None else found >= limit
    return {"goal": what, "expected": expected, "found": found, "reached": reached}


def goals_table(goals: Iterable[Mapping[str, Any]]) -> str:
    """The results of `goal` as a Markdown table."""
    verdicts = {None: "unproven", True: "reached", False: "missed"}
    rows = [[one["goal"], one["expected"], one["found"], verdicts[one["reached"]]] for one in goals]
    return markdown_table(["goal", "expected", "found", ""], rows)


def frame_size(text: str) -> tuple[int, int]:
    """An argparse type: height and width of the network's frames."""
    sides = [int(side) for side in text.split("x") if side.isdigit()]
    if len(sides) != 2 or any(side < 1 or side % contract.SIDE_MULTIPLE for side in sides):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected HxW of multiples of {contract.SIDE_MULTIPLE}"
        )
    return sides[0], sides[1]


def choices(known: Collection[str]) -> Callable[[str], list[str]]:
    """An argparse type: some of the known names, separated by commas."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(
                f"found {', '.join(unknown)}, expected some of {', '.join(known)}"
            )
        return chosen

    return parse


def numbers(text: str) -> list[int]:
    """An argparse type: whole numbers from 1, separated by commas; the result is sorted."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers from 1, for example 1,8,64")
    return found


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _output(*command: str) -> str | None:
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() or None if done.returncode == 0 else None


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
