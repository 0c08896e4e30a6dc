"""Measure video streams, as cameras send them: so many `detect.py` at once, each with a file of 1080p.

    python -m benchmarks.streams --url localhost:8001 --streams 16 --output-dir out/benchmarks

Writes streams.json: frames a second of all streams together, and of one alone.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import report
from benchmarks.networks import ROOT
from benchmarks.report import BenchmarkError

WIDTH, HEIGHT = 1920, 1080


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.streams", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True, help="gRPC service of a running server")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--frames", type=int, default=300, help="in each file")
    parser.add_argument("--output-dir", type=Path, default=Path("out/benchmarks"))
    return report.run("benchmarks.streams", measure, parser.parse_args(arguments))


def measure(options: argparse.Namespace) -> None:
    """Measure what the options ask for and write the report."""
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        _write_clip(clip, options.frames)
        rows = [_measure(clip, streams, options) for streams in (1, options.streams)]
    results = {"environment": report.environment(), "rows": rows}
    report.write(options.output_dir, "streams", results, tables)
    print(tables(results))


def tables(results: dict[str, Any]) -> str:
    """The report's table."""
    return report.records([row | {"each": row["throughput"] / row["streams"]} for row in results["rows"]])


def _measure(clip: Path, streams: int, options: argparse.Namespace) -> dict[str, Any]:
    """All streams from their start to the last one's end, the client's own start included."""
    begin, frames = time.monotonic(), 0
    outputs = [clip.with_name(f"{streams}-{index}.jsonl") for index in range(streams)]
    command = [sys.executable, "clients/detect.py", str(clip), "--url", options.url, "--json"]
    processes = [
        subprocess.Popen(
            [*command, str(lines)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for lines in outputs
    ]
    for process, lines in zip(processes, outputs, strict=True):
        _, errors = process.communicate()
        found = len(lines.read_text(encoding="utf-8").splitlines()) if lines.exists() else 0
        if process.returncode or found != options.frames:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise BenchmarkError(f"a stream gave {found} of {options.frames} frames: {last}")
        frames += found
    seconds = time.monotonic() - begin
    return {"streams": streams, "throughput": frames / seconds, "s": seconds}


def _write_clip(path: Path, frames: int) -> None:
    """A smooth background, and something that moves."""
    coarse = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    background = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (WIDTH, HEIGHT))
    if not writer.isOpened():
        raise BenchmarkError("OpenCV cannot write an MP4 file here")
    for index in range(frames):
        centre = (100 + 5 * index % (WIDTH - 200), HEIGHT // 2)
        writer.write(cv2.circle(background.copy(), centre, 80, (255, 255, 255), -1))
    writer.release()


if __name__ == "__main__":
    sys.exit(main())
