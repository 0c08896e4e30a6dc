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
from benchmarks.report import BenchmarkError

ROOT = Path(__file__).resolve().parents[1]
SIZE = (1080, 1920)
FRAMES_PER_S = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.streams", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True, help="gRPC service of a running server")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--frames", type=int, default=300, help="in each file")
    parser.add_argument("--output-dir", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.mp4"
            _write_clip(clip, options.frames)
            rows = [_measure(clip, streams, options) for streams in (1, options.streams)]
    except (BenchmarkError, OSError) as error:
        print(f"benchmarks.streams: {error}", file=sys.stderr)
        return 1
    columns = ["streams", "frames/s", "frames/s of each", "s"]
    table = [
        [row["streams"], row["throughput"], row["throughput"] / row["streams"], row["s"]] for row in rows
    ]
    results: dict[str, Any] = {"environment": report.environment(), "rows": rows}
    text = f"# Video streams\n\n{report.environment_lines(results['environment'])}\n"
    text += report.markdown_table(columns, table)
    report.write(options.output_dir, "streams", results=results, markdown=text)
    print(text)
    return 0


def _measure(clip: Path, streams: int, options: argparse.Namespace) -> dict[str, Any]:
    """All streams from their start to the last one's end, the client's own start included."""
    begin = time.monotonic()
    processes = []
    for index in range(streams):
        lines = clip.with_name(f"{streams}-{index}.jsonl")
        command = [sys.executable, "clients/detect.py", str(clip), "--url", options.url, "--json", str(lines)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        processes.append((process, lines))
    frames = 0
    for process, lines in processes:
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
    height, width = SIZE
    coarse = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    background = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FRAMES_PER_S, (width, height))
    if not writer.isOpened():
        raise BenchmarkError("OpenCV cannot write an MP4 file here")
    for index in range(frames):
        frame = background.copy()
        cv2.circle(frame, (100 + 5 * index % (width - 200), height // 2), 80, (255, 255, 255), -1)
        writer.write(frame)
    writer.release()


if __name__ == "__main__":
    sys.exit(main())
