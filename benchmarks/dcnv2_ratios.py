"""What `benchmarks.dcnv2` found, as ratios: of precisions, kernels and contenders.

python -m benchmarks.dcnv2_ratios DCNV2.json ...
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcnv2.library import GENERIC_TACTIC

from benchmarks import report
from benchmarks.dcnv2_report import OURS


def table(results: dict[str, Any]) -> str:
    """One line for each layer and batch size."""
    rows = results["layers"]
    int8 = {(row["layer"], row["batch"]): row for row in rows if row["precision"] == "int8"}
    lines: list[list[object]] = []
    for row in (row for row in rows if row["precision"] == "fp16" and OURS in row["us"]):
        own = row["us"][OURS]
        plain = row["facts"][OURS]["tactics_us"].get(str(GENERIC_TACTIC))
        beside = int8.get((row["layer"], row["batch"]), {"us": {}, "error": {}, "facts": {}})
        quantized = beside["us"].get(OURS)
        torchvision, convolution = (row["us"].get(name) for name in ("torchvision", "tensorrt-convolution"))
        lines.append(
            [
                *(row["layer"], row["batch"], own, row["facts"][OURS]["tactic"]),
                plain / own if plain else None,
                torchvision / own if torchvision else None,
                own / convolution if convolution else None,
                *(quantized, own / quantized if quantized else None),
                *(row["error"][OURS], beside["error"].get(OURS)),
            ]
        )
    columns = ["layer", "batch", "FP16, µs", "tactic", "plain kernel by it", "torchvision by it"]
    columns += ["it by plain convolution", "INT8, µs", "FP16 by INT8", "error, FP16", "error, INT8"]
    return report.markdown_table(columns, lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each file; returns the exit code."""
    for path in map(Path, sys.argv[1:] if argv is None else argv):
        print(
            f"{path}\n\n{table(json.loads(path.read_text(encoding='utf-8')))}"
            if path.is_file()
            else f"no {path}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
