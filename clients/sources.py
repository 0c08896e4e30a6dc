"""Where pictures come from: files, folders, patterns, standard input, web addresses, videos, cameras."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from clients import download
from clients.errors import SourceError
from clients.output import printable
from clients.video.source import Video

PICTURE_SUFFIXES = set(
    """.apng .avif .bmp .dib .gif .heic .heif .hif .jfi .jfif .jif .jpe .jpeg .jpg .pbm .pgm .pjp .pjpeg .png
    .pnm .ppm .tif .tiff .webp""".split()  # noqa: SIM905
)
"""What is taken from a folder; a file that is named itself may be called anything."""

VIDEO_SUFFIXES = set(
    """.264 .265 .3g2 .3gp .3gpp .asf .avi .divx .dv .f4v .flv .h264 .h265 .hevc .ivf .m1v .m2t .m2ts .m2v
    .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpe .mpeg .mpg .mts .mxf .ogm .ogv .qt .ts .vob .webm .wmv
    .y4m""".split()  # noqa: SIM905
)

MAX_NAME = 60
"""Characters that a file's name takes from a web address; file systems take 255 bytes."""

MAX_BYTES = 2**28
"""No picture is larger; what is smaller is the server's to judge."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture, read when it is wanted.

    Attributes:
        name: For people, and for the results.
        path: The file, or None for standard input and web addresses.
        relative: Where a drawing of it belongs below the output folder.
        content: What came from standard input.
        url: The web address, if it has one.
        problem: Why there is no picture of this name.
    """

    name: str
    path: Path | None
    relative: Path
    content: bytes = b""
    url: str = ""
    problem: str = ""

    @property
    def passing(self) -> bool:
        """Whether it is better not read twice: a pipe is empty then, and a web address is slow."""
        return bool(self.url) or (self.path is not None and not self.path.is_file())

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            SourceError: There is none; the text says what was found instead.
        """
        if self.problem:
            raise SourceError(self.problem)
        if self.url:
            return download.read(self.url, max_bytes=MAX_BYTES)
        if self.path is None:
            return self.content
        try:
            with self.path.open("rb") as file:
                return _bounded(file)
        except FileNotFoundError:
            raise SourceError("no such file") from None
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
            raise SourceError(getattr(error, "strerror", None) or str(error)) from error


def find(
    arguments: Iterable[str], note: Callable[[str], None] = lambda line: None
) -> Iterator[Picture | Video]:
    """What the command line's words stand for, in their order; folders and patterns sorted by name.

    A word is a file, a folder (its pictures and videos), a pattern (`**` goes into subfolders), `-` (one
    encoded picture from standard input), an image sequence (`frame_%04d.png`), a camera's number or device
    (`/dev/video0`), a stream's URL or a picture's. A word that stands for nothing becomes a picture that
    cannot be read.

    Args:
        arguments: The words.
        note: Told in one line what a folder has that is not taken.
    """
    for word in arguments:
        try:
            yield from _find(word, note)
        except (OSError, ValueError, SourceError) as error:
            problem = getattr(error, "strerror", None) or str(error)
            name = "stdin" if word == "-" else _without_password(word) or "''"
            yield Picture(name, None, Path(), problem=problem)


def _find(word: str, note: Callable[[str], None]) -> Iterator[Picture | Video]:
    path = Path(word)
    if not word:
        raise SourceError("found an empty name, expected a file or folder: is a shell variable unset?")
    if word == "-":
        yield Picture("stdin", None, Path("stdin.png"), _bounded(sys.stdin.buffer))
    elif re.match(r"https?://", word, re.IGNORECASE) and download.is_picture(word):
        name = printable(Path(unquote(urlsplit(word).path)).name).strip(".")[-MAX_NAME:]
        yield Picture(_without_password(word), None, Path(name or "picture.png"), url=word)
    elif "://" in word:
        yield Video(_without_password(word), word, Path("stream.mp4"), live=True)
    # Links in /dev/v4l name cameras by what they are.
    elif camera := re.fullmatch(r"/dev/video(\d{1,4})", os.path.realpath(path)):
        yield _camera(int(camera[1]))
    elif path.is_dir():
        yield from _folder(path, note)
    elif path.exists():
        yield _file(path, Path(path.name))
    elif re.fullmatch(r"\d{1,4}", word):
        yield _camera(int(word))
    elif re.search(r"%0?\d*d", path.name):
        name = re.sub(r"%0?\d*d", "", path.stem).strip("_-. ") or "sequence"
        yield Video(word, word, Path(f"{name}.mp4"))
    else:
        yield from _pattern(word)


def _folder(folder: Path, note: Callable[[str], None]) -> Iterator[Picture | Video]:
    files, others = [], Counter[str]()
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            others["folder(s)"] += 1
        elif is_apple_double(path.name):
            continue
        elif path.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES:
            if is_file(path):
                files.append(path)
            else:
                others["pipe(s) or device(s)"] += 1
        elif not path.name.startswith("."):
            others[path.suffix.lower() or "no suffix"] += 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
    if not files:
        found = f", found {kinds}" if kinds else ""
        raise SourceError(f"no pictures or videos in this folder{found}, expected {_suffixes()}")
    if others:
        more = ", …" if len(others) > 5 else ""
        note(f"{folder}: not taken: {others.total()} ({kinds}{more})")
    for path in files:
        yield _file(path, Path(path.name))


def _pattern(pattern: str) -> Iterator[Picture | Video]:
    parts = Path(pattern).parts
    fixed = len(list(itertools.takewhile(lambda part: not re.search(r"[*?\[]", part), parts)))
    folder = Path(*parts[:fixed])
    found = sorted(folder.glob(str(Path(*parts[fixed:])))) if fixed < len(parts) else []
    files = [path for path in found if is_file(path) and not is_apple_double(path.name)]
    for path in files:
        yield _file(path, path.relative_to(folder))
    if not files:
        link = Path(pattern).is_symlink()
        raise SourceError("found a link that leads nowhere, expected a file" if link else "no such file")


def is_file(path: Path) -> bool:
    """Whether it is a regular file, or a link that leads nowhere: an error when it is read."""
    return path.is_file() or not path.exists()


def is_apple_double(name: str) -> bool:
    """Whether it is what macOS writes beside a file onto foreign disks: no picture, whatever its suffix."""
    return PurePath(name).name.startswith("._")


def _camera(number: int) -> Video:
    return Video(f"camera {number}", number, Path(f"camera-{number}.mp4"), live=True)


def _file(path: Path, relative: Path) -> Picture | Video:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Video(str(path), str(path), relative.with_suffix(".mp4"))
    return Picture(str(path), path, relative)


def _bounded(file: BinaryIO) -> bytes:
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise SourceError(f"found more than {MAX_BYTES} bytes, no picture is so large")
    return content


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def _suffixes() -> str:
    return " ".join(sorted(PICTURE_SUFFIXES | VIDEO_SUFFIXES))
