"""What is written: tables for people, JSON for programs, drawings."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from clients.detections import Detections
from clients.errors import CenterNetError, OutputError

Entries = Callable[[list[Any]], None]
STANDARD_OUTPUT = Path("-")
DRAWING_SUFFIXES = {".jpe", ".jpeg", ".jpg", ".mp4", ".png", ".webp"}
CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of control characters, surrogates and line ends."""
MAX_NAME_BYTES = 255
"""Of a file, on Linux's file systems."""


EXTRAS_IN_JSON = {
    "keypoints": ("keypoints", 2),
    "locations": ("location", 3),
    "dimensions": ("dimensions", 3),
    "rotations": ("rotation", 4),
    "embeddings": ("embedding", 5),
    "tracks": ("track", 0),
}
"""Of each of `detections.EXTRAS`: its key in a detection's JSON, and decimals."""


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file gets its name at the end, or is removed after an error.

    A link stays, and what it leads to is replaced. What is no file, as /dev/null, is written itself.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        yield path
        return
    part = part_of(path)
    try:
        yield part
        if part.exists():
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """What a file is called until it is complete."""
    name = f".{path.stem}.part{path.suffix}"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.part{path.suffix}"
    return path.with_name(name)


@contextmanager
def json_writer(path: Path, form: str) -> Iterator[Entries]:
    """Yields a function that appends entries to a JSON file as they come: they need not fit into memory.

    However the run ends, the file is whole and has what was appended. An earlier file is replaced at the end,
    and only if there is something to replace it by; that of `lines` at the beginning.

    Args:
        path: The file, or `STANDARD_OUTPUT`; UTF-8 in any locale.
        form: `lines` writes one entry a line, everything else one array.

    Raises:
        OutputError: By the function: the file cannot be written. It has what was appended before.
        BrokenPipeError: By the function: nobody reads standard output any more.
    """
    if path == STANDARD_OUTPUT:
        with _appending(sys.stdout.buffer, path, form) as append:
            yield append
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext(path) if form == "lines" else beside(path) as part, part.open("wb", buffering=0) as file:
        try:
            with _appending(file, path, form) as append:
                yield append
        except BaseException:
            if part != path and file.tell():
                part.replace(path)
            raise


@contextmanager
def _appending(file: BinaryIO, path: Path, form: str) -> Iterator[Entries]:
    lines = form == "lines"
    begun = False

    def write(text: str) -> None:
        # What is no Unicode, a file name's odd bytes, is escaped as JSON does it.
        content = text.encode("utf-8", "backslashreplace")
        end = file.tell() if file.seekable() and path != STANDARD_OUTPUT else None
        try:
            while content:
                content = content[file.write(content) :]
            file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            with suppress(OSError):  # No half entry.
                if end is not None:
                    file.truncate(end)
                    file.seek(end)
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def append(entries: list[Any]) -> None:
        nonlocal begun
        for entry in entries:
            before, after = ("", "\n") if lines else (",\n" if begun else "[\n", "")
            write(before + json.dumps(entry, ensure_ascii=False) + after)
            begun = True

    try:
        yield append
    except BaseException:
        if begun and not lines:
            with suppress(OSError, OutputError):
                write("\n]\n")
        raise
    if not lines:
        write("\n]\n" if begun else "[\n]\n")


def entry(name: str, detections: Detections, **more: Any) -> dict[str, Any]:
    """A picture's detections as JSON: scores to 4 decimals, boxes and key points to 2 (pixels).

    The network's other answers are there under the names of `EXTRAS_IN_JSON`.
    """
    found = [
        {"label": label, "class_id": int(class_id), "score": round(float(score), 4), "xyxy": box}
        for label, class_id, score, box in zip(
            detections.labels,
            detections.class_ids,
            detections.scores,
            _rounded(detections.xyxy, 2),
            strict=True,
        )
    ]
    for key, values in detections.extras.items():
        name_of_one, decimals = EXTRAS_IN_JSON[key]
        for one, value in zip(found, _rounded(values, decimals), strict=True):
            if key != "tracks" or value >= 0:
                one[name_of_one] = value
    return {"image": name, **more, "detections": found}


def _rounded(values: np.ndarray, decimals: int) -> list[Any]:
    whole = np.issubdtype(values.dtype, np.integer)
    return (values if whole else np.round(values.astype(float), decimals)).tolist()


def printable(text: str) -> str:
    """A name as one line: what would move the cursor, or is no Unicode at all, is escaped."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in CONTROLS else char
        for char in text
    )


class Tables:
    """What was found, for people: the boxes of a single picture, else a row for each."""

    def __init__(self) -> None:
        self._all = Table("picture", "detections", box=SIMPLE_HEAD)
        self._single: Table | None = None

    def add(self, name: str, detections: Detections) -> None:
        """Adds a picture."""
        self._single = None if self._all.row_count else _boxes(name, detections)
        self._all.add_row(Text(printable(name), overflow="fold"), Text(_count(Counter(detections.labels))))

    def add_video(self, name: str, labels: Counter[str], *, frames: int, identities: int = 0) -> None:
        """Adds a video: how often each class was seen in all frames together, and how many identities."""
        self._single = None
        of = f"; {identities} identities" if identities else ""
        self._all.add_row(
            Text(printable(name), overflow="fold"), Text(f"in {frames} frames: {_count(labels)}{of}")
        )

    def table(self) -> Table | str:
        """The table to print; empty if nothing was added."""
        return self._single or (self._all if self._all.row_count else "")


def _boxes(name: str, detections: Detections) -> Table:
    title = Text(f"{printable(name)}: {_count(Counter(detections.labels))}")
    table = Table("class", box=SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("score", "x1", "y1", "x2", "y2"):
        table.add_column(column, justify="right")
    for label, score, box in zip(detections.labels, detections.scores, detections.xyxy, strict=True):
        table.add_row(Text(printable(label)), f"{score:.2f}", *(f"{value:.1f}" for value in box))
    return table


def _count(labels: Counter[str]) -> str:
    return ", ".join(f"{count} {printable(label)}" for label, count in labels.most_common()) or "nothing"


Bar = AbstractContextManager[Callable[[], None]]
AddBar = Callable[..., Bar]


@contextmanager
def bars(console: Console) -> Iterator[AddBar]:
    """Yields a function that adds a bar as a context manager like `progress`; any thread may call it.

    Args:
        console: Where; lines printed there appear above the bars.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:

        @contextmanager
        def add(name: str, total: int | None, completed: int = 0) -> Iterator[Callable[[], None]]:
            task = shown.add_task(escape(name), total=total, completed=completed)
            try:
                yield lambda: shown.advance(task)
            finally:
                if len(shown.tasks) > 1:  # The last one stays until all is erased.
                    shown.remove_task(task)

        yield add


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
    with bars(console) as add, add(name, total, completed) as advance:
        yield advance


class OutputFolder:
    """Names for drawings: those of the pictures, no two alike, never a picture itself.

    Any thread may call.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._taken: set[Path] = set()
        self._lock = threading.Lock()

    def name(self, relative: Path, source: Path | None) -> Path:
        """Where the drawing of `source` goes.

        Raises:
            CenterNetError: Onto the picture itself.
        """
        if relative.suffix.lower() not in DRAWING_SUFFIXES:
            relative = relative.with_suffix(".png")
        with self._lock:
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
        try:
            encoded, content = cv2.imencode(path.suffix, picture)
        except cv2.error:
            encoded = False
        if not encoded:
            height, width = picture.shape[:2]
            raise CenterNetError(f"cannot write {path}: {width}x{height} pixels do not fit into this format")
        # OpenCV would not open every name.
        with beside(path) as part:
            part.write_bytes(content.tobytes())
        return path
