"""The figures of `benchmarks.accuracy` as tables."""

from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import BenchmarkError
from export.files import write_beside
from export.plan import quantize

SHOWN = ("AP", "AP50", "AP75")
MARK = "<!-- python -m benchmarks.accuracy writes what follows -->\n"


def markdown(results: dict[str, Any]) -> str:
    """The tables of all checkpoints."""
    text = report.environment_lines(results["environment"]) + (
        f"- Evaluated on the {results['pictures']} pictures of {results['annotations']}, "
        f"INT8 calibrated on {results['calibration_pictures']} training pictures\n"
    )
    return text + "".join(map(_checkpoint, results["checkpoints"]))


def update(document: Path, text: str) -> None:
    """Replaces what follows `MARK` in a Markdown file.

    Raises:
        BenchmarkError: The file has no such line.
    """
    head, mark, _ = document.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise BenchmarkError(f"{document} has no line {MARK.strip()}: put it where the tables shall be")
    write_beside(document, f"{head}{mark}\n{text}".encode())


def _checkpoint(results: dict[str, Any]) -> str:
    height, width = results["input_size"]
    text = f"\n## {results['checkpoint']}: {results['arch']}, {width}x{height}\n\n"
    rows = results["rows"]
    text += report.markdown_table(
        ["", *SHOWN, "AP against PyTorch", "95 % of draws"],
        [[row["row"], *_values(row), _difference(row, rows[0]), _interval(row)] for row in rows],
    )
    if results["sensitivity"]:
        text += "\nINT8 of one part of the network, the rest in FP32:\n\n" + report.markdown_table(
            ["part", "convolutions", *SHOWN, "AP against FP32", "95 % of draws", "INT8 in the plan"],
            [_sensitivity(row, results["sensitivity"][0]) for row in results["sensitivity"]],
        )
    return text


def _sensitivity(row: dict[str, Any], base: dict[str, Any]) -> list[object]:
    group = row["group"].partition(".")[0]
    known = "yes" if group in quantize.QUANTIZED_GROUPS else "no" if group in quantize.GROUPS else ""
    return [row["group"], row["layers"], *_values(row), _difference(row, base), _interval(row), known]


def _interval(row: dict[str, Any]) -> str:
    return "{:+.4f} to {:+.4f}".format(*row["AP_interval"]) if "AP_interval" in row else ""


def _values(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:.4f}" for name in SHOWN]


def _difference(row: dict[str, Any], base: dict[str, Any]) -> str:
    return "" if row is base else f"{row['AP'] - base['AP']:+.4f}"
