"""What a long run has done so far, so that the next one goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from clients.annotations import Id
from clients.errors import CenterNetError


class ProgressFile:
    """JSON lines: the run's settings first, then a line for each finished item. A context manager.

    Attributes:
        done: What each finished item came to, by its key.

    Args:
        path: The file; it is gone on when it exists.
        settings: Must equal those that the file was begun with.

    Raises:
        CenterNetError: The file belongs to a run with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.done: dict[Id, list[Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read(settings) if path.exists() else 0
        self._file = path.open("a", encoding="utf-8")
        # A run that was killed may have left half a line.
        self._file.truncate(whole)
        if not whole:
            self._append(settings)

    def __enter__(self) -> ProgressFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, key: Id, value: list[Any]) -> None:
        """Records a finished item at once."""
        self.done[key] = value
        self._append([key, value])

    def remove(self) -> None:
        """Deletes the file: the run is complete."""
        self._file.close()
        self.path.unlink()

    def _append(self, content: Any) -> None:
        self._file.write(json.dumps(content) + "\n")
        self._file.flush()

    def _read(self, settings: dict[str, Any]) -> int:
        """Reads the whole lines and returns where they end."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                try:
                    content = json.loads(line)
                    if number:
                        key, value = content
                        self.done[key] = value
                except (TypeError, ValueError) as error:
                    raise CenterNetError(
                        f"{self.path} line {number + 1} is not of an evaluation: delete it to start anew"
                    ) from error
                if number == 0 and content != settings:
                    found = content if isinstance(content, dict) else {}
                    changed = [name for name in settings if found.get(name) != settings[name]]
                    raise CenterNetError(
                        f"{self.path} is of a run with another {', '.join(changed)}: delete it to start anew"
                    )
        return end
