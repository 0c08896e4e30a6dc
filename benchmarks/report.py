"""What every benchmark writes: its figures with machine, versions and command, as JSON and as Markdown.

    python -m benchmarks.report docs/gpu/*/*.json

prints the tables of results that are there; the benchmark is the file's name up to the first hyphen.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import math
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

from export.errors import ExportError
from export.files import write_beside

PACKAGES = (
    *("numpy", "opencv-python-headless", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision"),
    *("tensorrt", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings", "polygraphy", "tritonclient"),
)


class BenchmarkError(Exception):
    """A run that cannot go on; its text is one line that says what to do."""


def run(
    name: str,
    measure: Callable[[argparse.Namespace], object],
    options: argparse.Namespace,
    *expected: type[Exception],
) -> int:
    """Has a benchmark measure; returns its exit code: 1 after an expected error, of which a line tells."""
    errors: tuple[type[Exception], ...] = (BenchmarkError, ExportError, OSError, *expected)
    try:
        measure(options)
    except errors as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


def environment() -> dict[str, Any]:
    """Describe this run: when, by which command, of which revision, on which machine, with which versions."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
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
        "versions": versions,
    }


def write(
    output_dir: Path, name: str, results: Mapping[str, Any], tables: Callable[[Any], str] | None = None
) -> None:
    """Write NAME.json into the folder, which is made if need be, and NAME.md if there are tables.

    Args:
        output_dir: The folder.
        name: Of the files.
        results: What `environment` returned, under that name, and the figures.
        tables: Makes Markdown of what the JSON file holds.
    """
    text = json.dumps(results, indent=1) + "\n"
    files = {".json": text} | ({".md": page(json.loads(text), tables)} if tables else {})
    output_dir.mkdir(parents=True, exist_ok=True)
    for suffix, content in files.items():
        write_beside(output_dir / f"{name}{suffix}", content.encode())


def page(results: Mapping[str, Any], tables: Callable[[Any], str]) -> str:
    """A report as Markdown: the run, then the tables."""
    run, machine = results["environment"], results["environment"]["machine"]
    hardware = [
        *(machine["gpu"] or "").splitlines(),
        f"{machine['cores']} cores of {machine['cpu']}",
        f"{machine['memory_gib']} GiB",
        machine["system"],
    ]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return (
        f"- Command: `{run['command']}`\n- Machine: {', '.join(hardware)}, load average "
        f"{machine['load_average']:.1f} at the start\n"
        f"- Versions: {versions}; revision {run['revision']}; {run['date']}\n\n{tables(results)}"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: numbers with three significant digits and to the right, None as a hyphen."""
    rows = list(rows)
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    rule = ["--:" if right else "---" for right in numeric]
    lines = [columns, rule, *([_cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def records(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table of rows by column; what a row does not have is a hyphen."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return table(columns, [[row.get(column) for column in columns] for row in rows])


def ratio(value: float | None, by: float | None) -> float | None:
    """None where one of them is missing."""
    return value / by if value is not None and by else None


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
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers from 1, for example 1,8,64")
    return sorted(set(map(int, parts)))


def positive(kind: type) -> Callable[[str], float]:
    """An argparse type: a finite number above 0, whole if the kind is `int`."""

    def parse(text: str) -> float:
        if not 0 < (value := kind(text)) < math.inf:
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of result files; returns the exit code."""
    for path in map(Path, sys.argv[1:] if arguments is None else arguments):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            tables = importlib.import_module(f"benchmarks.{path.stem.partition('-')[0]}").tables
        except (OSError, ValueError, ImportError, AttributeError) as error:
            print(f"benchmarks.report: {path}: found no results of a benchmark: {error}", file=sys.stderr)
            return 1
        print(f"# {path}\n\n{page(results, tables)}")
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
