"""Where pictures come from: files, folders, patterns, standard input, videos, cameras, streams."""

from __future__ import annotations

import itertools
import os
import re
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from clients.errors import SourceError

if TYPE_CHECKING:
    import numpy as np

PICTURE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
"""What is taken from a folder; a file that is named itself may be called anything."""

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}

MAX_BYTES = 2**28
"""No picture is larger; what is smaller is the server's to judge."""

STREAM_TIMEOUT_MS = 10_000
DEFAULT_FPS = 25.0


@dataclass(frozen=True)
class Picture:
    """An encoded picture, read when it is wanted.

    Attributes:
        name: For people, and for the results.
        path: The file, or None for standard input.
        relative: Where a drawing of it belongs below the output folder.
        content: What came from standard input.
        problem: Why there is no picture of this name.
    """

    name: str
    path: Path | None
    relative: Path
    content: bytes = b""
    problem: str = ""

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            SourceError: There is none; the text says what was found instead.
        """
        if self.problem:
            raise SourceError(self.problem)
        if self.path is None:
            return self.content
        try:
            with self.path.open("rb") as file:
                return _bounded(file)
        except FileNotFoundError:
            raise SourceError("no such file") from None
        except OSError as error:
            raise SourceError(error.strerror or str(error)) from error


class Frame(NamedTuple):
    """One picture of a video: its number from 0, time in seconds, pixels uint8 [height, width, 3] BGR."""

    number: int
    time_s: float
    pixels: np.ndarray

    def picture(self) -> np.ndarray:
        """What the client takes."""
        return self.pixels


@dataclass(frozen=True)
class Video:
    """A video file, a numbered image sequence, a camera or a network stream.

    Attributes:
        address: What OpenCV opens: a path, a pattern like `frame_%04d.png`, a URL or a camera's number.
        relative: Where an annotated copy belongs below the output folder.
        live: A camera or a URL: it may have no end of its own.
    """

    name: str
    address: str | int
    relative: Path
    live: bool = False

    def open(self) -> OpenVideo:
        """Starts reading.

        Raises:
            SourceError: OpenCV cannot open it.
        """
        return OpenVideo(self)


class OpenVideo:
    """Frames of a `Video`, in order. A context manager.

    Attributes:
        fps: Frames per second.
        frame_count: About how many frames there are, or None if nobody knows.
        problem: Why there were fewer frames than there should be, once they have been iterated.
    """

    def __init__(self, video: Video) -> None:
        # OpenCV and FFmpeg write their own lines beside the one that this program writes.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        import cv2

        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, STREAM_TIMEOUT_MS]
        timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, STREAM_TIMEOUT_MS]
        stream = isinstance(video.address, str) and "://" in video.address
        self._video = video
        self._capture: Any = (
            cv2.VideoCapture(video.address, cv2.CAP_FFMPEG, timeouts)
            if stream
            else cv2.VideoCapture(video.address)
        )
        if not self._capture.isOpened():
            raise SourceError("no video that OpenCV can open")
        if video.live:
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self.fps: float = self._capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count: int | None = frames if frames > 0 else None
        self.problem = ""

    def __enter__(self) -> OpenVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[Frame]:
        import cv2

        number, shown_s = 0, 0.0
        while True:
            read, pixels = self._capture.read()
            if not read:
                break
            shown_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            yield Frame(number, number / self.fps, pixels)
            number += 1
        if not number:
            raise SourceError("no frame could be read")
        # Not raised: the frames before, some still being answered, are good.
        self.problem = self._missing(number, shown_s)

    def _missing(self, frames: int, shown_s: float) -> str:
        """What is wrong when no frame follows these, the last one shown at `shown_s`; nothing is empty."""
        count, live = self.frame_count, self._video.live
        if count is None:
            return f"stream lost after {frames} frames; their results are kept" if live else ""
        # Some containers know the frames, others the seconds, from which OpenCV makes a count.
        duration_s = (not live and _mp4_duration_s(Path(str(self._video.address)))) or count / self.fps
        tolerance = max(2.0, min(self.fps, count / 20))
        if frames >= count - tolerance or shown_s >= duration_s - tolerance / self.fps:
            return ""
        cause = "stream lost" if live else "the file is cut or damaged"
        return f"{cause}: {frames} of about {count} frames could be read; their results are kept"


def find(arguments: Iterable[str]) -> Iterator[Picture | Video]:
    """What the command line's words stand for, in their order; folders and patterns sorted by name.

    A word is a file, a folder (its pictures and videos), a pattern (`**` goes into subfolders), `-` (one
    encoded picture from standard input), an image sequence (`frame_%04d.png`), a camera's number or a
    stream's URL. A word that stands for nothing becomes a picture that cannot be read.
    """
    for word in arguments:
        try:
            yield from _find(word)
        except (OSError, ValueError, SourceError) as error:
            problem = getattr(error, "strerror", None) or str(error)
            name = "stdin" if word == "-" else word or "''"
            yield Picture(name, None, Path(), problem=problem)


def _find(word: str) -> Iterator[Picture | Video]:
    path = Path(word)
    if not word:
        raise SourceError("found an empty name, expected a file or folder: is a shell variable unset?")
    if word == "-":
        yield Picture("stdin", None, Path("stdin.png"), _bounded(sys.stdin.buffer))
    elif "://" in word:
        yield Video(_without_password(word), word, Path("stream.mp4"), live=True)
    elif path.is_dir():
        yield from _folder(path)
    elif path.exists():
        yield _file(path, Path(path.name))
    elif re.fullmatch(r"\d{1,4}", word):
        yield Video(f"camera {word}", int(word), Path(f"camera-{word}.mp4"), live=True)
    elif re.search(r"%0?\d*d", path.name):
        name = re.sub(r"%0?\d*d", "", path.stem).strip("_-. ") or "sequence"
        yield Video(word, word, Path(f"{name}.mp4"))
    else:
        yield from _pattern(word)


def _folder(folder: Path) -> Iterator[Picture | Video]:
    files = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES
    )
    for path in files:
        yield _file(path, Path(path.name))
    if not files:
        raise SourceError(f"no pictures or videos in this folder, expected {_suffixes()}")


def _pattern(pattern: str) -> Iterator[Picture | Video]:
    parts = Path(pattern).parts
    fixed = len(list(itertools.takewhile(lambda part: not re.search(r"[*?\[]", part), parts)))
    folder = Path(*parts[:fixed])
    found = sorted(folder.glob(str(Path(*parts[fixed:])))) if fixed < len(parts) else []
    files = [path for path in found if path.is_file()]
    for path in files:
        yield _file(path, path.relative_to(folder))
    if not files:
        raise SourceError("no such file")


def _file(path: Path, relative: Path) -> Picture | Video:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Video(str(path), str(path), relative.with_suffix(".mp4"))
    return Picture(str(path), path, relative)


def _mp4_duration_s(path: Path) -> float | None:
    """Seconds that an MP4 or QuickTime file shows; None for others.

    Its count of frames includes those that were trimmed away in a phone, which nobody is shown.
    """
    if path.suffix.lower() not in {".m4v", ".mov", ".mp4"}:
        return None
    with path.open("rb") as file:
        while len(header := file.read(16)) == 16:
            size, kind = struct.unpack_from(">I4s", header)
            if kind == b"moov" and header[12:] == b"mvhd":
                movie = file.read(32)
                place, form = (20, ">IQ") if movie[0] == 1 else (12, ">II")
                timescale, duration = struct.unpack_from(form, movie, place)
                return duration / max(timescale, 1)
            if size == 1:
                (size,) = struct.unpack_from(">Q", header, 8)
            if size < 8:
                break
            file.seek(size - 16, os.SEEK_CUR)
    return None


def _bounded(file: BinaryIO) -> bytes:
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise SourceError(f"found more than {MAX_BYTES} bytes, no picture is so large")
    return content


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def _suffixes() -> str:
    return " ".join(sorted(PICTURE_SUFFIXES | VIDEO_SUFFIXES))
