"""Annotated copies of videos, by FFmpeg's libraries (PyAV)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.errors import CenterNetError
from clients.output import part_of
from clients.video.source import OpenVideo

if TYPE_CHECKING:
    import numpy as np

ENCODER = {"preset": "veryfast", "crf": "18"}
"""Of x264: little is lost."""


class VideoWriter:
    """Writes frames to an MP4 file (H.264, no sound) at their own times. A context manager.

    The file gets its name at the end, if nothing failed.

    Args:
        path: The file.
        video: Whose frame rate and unit of time it gets.
        on_error: Told once that the file cannot be written; further frames are ignored.

    Attributes:
        broken: Whether it cannot be written.
    """

    def __init__(self, path: Path, video: OpenVideo, on_error: Callable[[CenterNetError], None]) -> None:
        self.broken = False
        self._path = path
        self._part = part_of(path)
        self._video = video
        self._on_error = on_error
        self._container: Any = None
        self._stream: Any = None
        self._pts = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._container is None:
            return
        if kind is None:
            self._guarded(self._finish)
        with suppress(Exception):  # What is closed or broken already.
            self._container.close()
        self._part.unlink(missing_ok=True)

    def append(self, pixels: np.ndarray, time_s: float) -> None:
        """Adds a frame, uint8 [height, width, 3] BGR, to be shown at `time_s`."""
        self._guarded(self._append, pixels, time_s)

    def _append(self, pixels: np.ndarray, time_s: float) -> None:
        import av

        if self._container is None:
            self._open(*pixels.shape[:2])
        stream, time_base = self._stream, self._video.time_base
        frame = av.VideoFrame.from_ndarray(pixels, format="bgr24")
        frame = frame.reformat(stream.width, stream.height, stream.pix_fmt)
        # No encoder takes frames that go back in time.
        frame.pts = self._pts = max(self._pts + 1, round(time_s / time_base))
        frame.time_base = time_base
        self._container.mux(stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        import av

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part.absolute()), "w", format="mp4")
        rate = Fraction(self._video.fps).limit_denominator(100_000)
        stream: Any = self._container.add_stream("libx264", rate=rate, options=ENCODER)
        stream.width, stream.height = width, height
        # Players everywhere know the first one, which wants even sides.
        stream.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
        stream.time_base = stream.codec_context.time_base = self._video.time_base
        self._stream = stream

    def _finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._part.replace(self._path)

    def _guarded(self, write: Callable[..., None], *arguments: Any) -> None:
        import av

        if self.broken:
            return
        try:
            write(*arguments)
        except (av.FFmpegError, OSError) as error:
            self.broken = True
            self._on_error(CenterNetError(f"cannot write {self._path}: {error.strerror}"))
