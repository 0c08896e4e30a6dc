"""Files are whole or not there."""

import os
from pathlib import Path

from export.errors import ExportError


def write_beside(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name beside `path` and renames it.

    Raises:
        ExportError: The folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
