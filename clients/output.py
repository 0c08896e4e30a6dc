"""What is written: tables for people, JSON for programs, annotated videos.

Files get their name when they are complete.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from clients.detections import Detections
from clients.errors import CenterNetError

Entries = Callable[[list[Any]], None]
STANDARD_OUTPUT = Path("-")


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file gets its name at the end, or is removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        if part.exists():
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def json_writer(path: Path, form: str) -> Iterator[Entries]:
    """Yields a function that appends entries to a JSON file as they come: they need not fit into memory.

    Args:
        path: The file, or `STANDARD_OUTPUT`.
        form: `lines` writes one entry a line, everything else one array.
    """

    def write(file: TextIO) -> Iterator[Entries]:
        between = iter(["[\n"] if form != "lines" else [])

        def append(entries: list[Any]) -> None:
            for entry in entries:
                file.write(next(between, "" if form == "lines" else ",\n") + json.dumps(entry))
                if form == "lines":
                    file.write("\n")
            file.flush()

        yield append
        if form != "lines":
            file.write(next(between, "\n") + "]\n")

    if path == STANDARD_OUTPUT:
        yield from write(sys.stdout)
        return
    if form == "lines":  # Whole line by line: what an error or a signal ends keeps its results.
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            yield from write(file)
        return
    with beside(path) as part, part.open("w", encoding="utf-8") as file:
        yield from write(file)


def entry(name: str, detections: Detections, **more: Any) -> dict[str, Any]:
    """A picture's detections as JSON: scores to 4 decimals, boxes to 2 (pixels)."""
    return {
        "image": name,
        **more,
        "detections": [
            {"label": label, "class_id": int(class_id), "score": round(float(score), 4), "xyxy": box}
            for label, class_id, score, box in zip(
                detections.labels,
                detections.class_ids,
                detections.scores,
                np.round(detections.xyxy.astype(float), 2).tolist(),
                strict=True,
            )
        ],
    }


class Tables:
    """What was found, for people: the boxes of a single picture, else a row for each."""

    def __init__(self) -> None:
        self._all = Table("picture", "detections", box=SIMPLE_HEAD)
        self._single: Table | None = None

    def add(self, name: str, detections: Detections) -> None:
        """Adds a picture."""
        self._single = None if self._all.row_count else _boxes(name, detections)
        self._all.add_row(Text(name, overflow="fold"), Text(_count(Counter(detections.labels))))

    def add_video(self, name: str, labels: Counter[str], *, frames: int) -> None:
        """Adds a video: how often each class was seen in all frames together."""
        self._single = None
        self._all.add_row(Text(name, overflow="fold"), Text(f"in {frames} frames: {_count(labels)}"))

    def table(self) -> Table | str:
        """The table to print; empty if nothing was added."""
        return self._single or (self._all if self._all.row_count else "")


def _boxes(name: str, detections: Detections) -> Table:
    title = Text(f"{name}: {_count(Counter(detections.labels))}")
    table = Table("class", box=SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("score", "x1", "y1", "x2", "y2"):
        table.add_column(column, justify="right")
    for label, score, box in zip(detections.labels, detections.scores, detections.xyxy, strict=True):
        table.add_row(Text(label), f"{score:.2f}", *(f"{value:.1f}" for value in box))
    return table


def _count(labels: Counter[str]) -> str:
    return ", ".join(f"{count} {label}" for label, count in labels.most_common()) or "nothing"


@contextmanager
def progress(
    console: Console, name: str, total: int | None, *, completed: int = 0
) -> Iterator[Callable[[], None]]:
    """Yields a function to call for each step; shows a bar on a terminal.

    Args:
        console: Where; lines printed there appear above the bar.
        name: What the bar is called.
        total: Steps, or None if nobody knows.
        completed: Steps that were done before.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(escape(name), total=total, completed=completed)
        yield lambda: bar.advance(task)


@contextmanager
def video_writer(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends frames, uint8 [height, width, 3] BGR, to an MP4 file (no sound)."""
    import cv2

    writer: Any = None

    def append(frame: np.ndarray) -> None:
        nonlocal writer
        if writer is None:
            height, width = frame.shape[:2]
            writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
            if not writer.isOpened():
                raise CenterNetError(f"cannot write {path}: OpenCV has no encoder for it")
        writer.write(frame)

    with beside(path) as part:
        try:
            yield append
        finally:
            if writer is not None:
                writer.release()


class OutputFolder:
    """Names for drawings: those of the pictures, no two alike, never a picture itself."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._taken: set[Path] = set()

    def name(self, relative: Path, source: Path | None) -> Path:
        """Where the drawing of `source` goes.

        Raises:
            CenterNetError: Onto the picture itself.
        """
        if relative.suffix.lower() not in {".jpg", ".jpeg", ".png", ".webp", ".mp4"}:
            relative = relative.with_suffix(".png")
        path = self.path / relative
        number = 2
        while path in self._taken:
            path = (self.path / relative).with_stem(f"{relative.stem}-{number}")
            number += 1
        if source and path.resolve() == source.resolve():
            raise CenterNetError(
                f"the drawing would replace the picture: choose another folder than {self.path}"
            )
        self._taken.add(path)
        return path

    def save(self, picture: np.ndarray, relative: Path, source: Path | None) -> Path:
        """Writes a drawing and returns its path."""
        import cv2

        path = self.name(relative, source)
        with beside(path) as part:
            if not cv2.imwrite(str(part), picture):
                raise CenterNetError(f"cannot write {path}")
        return path
