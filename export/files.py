"""Files are whole or not there."""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from export.errors import ExportError


def write_beside(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name beside `path` and renames it.

    Raises:
        ExportError: The folder cannot be written to.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files that describe each other: none gets its name before all are whole.

    Args:
        contents: In the order in which the files get their names.

    Raises:
        ExportError: A folder cannot be written to.
    """
    # Process ids repeat among containers that share a volume.
    temporaries = {path: path.with_name(f".{path.name}.{secrets.token_hex(8)}") for path in contents}
    try:
        for path, temporary in temporaries.items():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            temporary.write_bytes(contents[path])
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, unless it is there.

    Raises:
        ExportError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{folder}: cannot be made: {error.strerror}") from None


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(paths: Iterable[Path]) -> str:
    """Of the contents of several files, in this order."""
    return hashlib.sha256("".join(map(sha256, paths)).encode()).hexdigest()
