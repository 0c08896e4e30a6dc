"""Annotated copies of videos, by FFmpeg's libraries (PyAV)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.errors import CenterNetError
from clients.output import beside
from clients.video.source import OpenVideo

if TYPE_CHECKING:
    import numpy as np

ENCODER = {"preset": "veryfast", "crf": "18"}
"""Of x264: little is lost."""


class VideoWriter:
    """Writes frames to an MP4 file (H.264, no sound) at their own times. A context manager.

    The file gets its name at the end, if nothing failed; see `output.beside`.

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
        self._video = video
        self._on_error = on_error
        self._files = ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._pts = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._guarded(self._finish)
        else:
            self._give_up(error)

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

        part = self._files.enter_context(beside(self._path))
        self._container = self._files.enter_context(av.open(str(part), "w", format="mp4"))
        rate = Fraction(self._video.fps).limit_denominator(100_000)
        stream: Any = self._container.add_stream("libx264", rate=rate, options=ENCODER)
        stream.width, stream.height = width, height
        # Players everywhere know the first one, which wants even sides.
        stream.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
        stream.time_base = stream.codec_context.time_base = self._video.time_base
        self._stream = stream

    def _finish(self) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._files.close()

    def _give_up(self, error: BaseException) -> None:
        with suppress(Exception):  # Of what is broken already.
            self._files.__exit__(type(error), error, error.__traceback__)

    def _guarded(self, write: Callable[..., None], *arguments: Any) -> None:
        import av

        if self.broken:
            return
        try:
            write(*arguments)
        except (av.FFmpegError, OSError) as error:
            self.broken = True
            self._give_up(error)
            self._on_error(CenterNetError(f"cannot write {self._path}: {error.strerror}"))
