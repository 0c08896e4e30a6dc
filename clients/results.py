"""Where the results of a run go: table, JSON, drawings, and a line for whatever failed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.console import Console

from clients import options, output
from clients.blocking import CenterNetClient
from clients.detections import Detections
from clients.errors import CenterNetError, OutputError, UnavailableError

FATAL = (BrokenPipeError, OutputError, UnavailableError)
"""What ends a run: the other pictures would fail alike."""


class Results:
    """The results of one run of a program. Any thread may call.

    Attributes:
        write: Appends entries to the JSON file.
        folder: Where drawings go, or None.
        failed: How many pictures, frames and videos could not be done.
        console: For lines and bars.
        note: Prints a line that is no failure.
    """

    def __init__(self, program: options.Program) -> None:
        self.write: Callable[[list[Any]], None] = lambda entries: None
        self.folder: output.OutputFolder | None = None
        self.failed = 0
        self.console = program.console
        self.note = program.say
        self._tables = output.Tables()
        self._lock = threading.Lock()

    def add(self, entries: list[Any]) -> None:
        """Writes JSON entries together."""
        with self._lock:
            self.write(entries)

    def add_picture(self, name: str, detections: Detections) -> None:
        """Adds a picture to the table."""
        with self._lock:
            self._tables.add(name, detections)

    def add_video(self, name: str, labels: Counter[str], *, frames: int, identities: int) -> None:
        """Adds a video to the table."""
        with self._lock:
            self._tables.add_video(name, labels, frames=frames, identities=identities)

    def report(self, name: str, error: Exception) -> None:
        """Counts a failure and prints it as a line."""
        with self._lock:
            self.failed += 1
        self.note(f"{name}: {_said(error)}")

    def print_tables(self) -> None:
        """Prints what was found: one picture's boxes, or a row for each of many."""
        console = Console(highlight=False)
        if table := self._tables.table():
            console.print(table)
        if self.folder:
            console.print(
                f"drawings in {output.printable(str(self.folder.path))}", markup=False, soft_wrap=True
            )


def _said(error: Exception) -> str:
    """What an error says, without the number that the system gives it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def failure(client: CenterNetClient, error: Exception | None, done: str) -> Exception:
    """What became of a picture without detections, `done` before it.

    Raises:
        UnavailableError: The server has gone for good.
    """
    options.end_if_gone(client, error, done)
    return error or CenterNetError("no answer")
