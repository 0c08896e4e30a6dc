"""Videos by FFmpeg's libraries (PyAV): files, image sequences, cameras, streams."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clients.errors import SourceError

if TYPE_CHECKING:
    import numpy as np

TIMEOUT_S = 10.0
"""How long a stream may be silent."""

DEFAULT_FPS = 25

NO_TIMESTAMPS = 0x80
"""FFmpeg's AVFMT_NOTIMESTAMPS."""


class Frame(NamedTuple):
    """One picture of a video: its number from 0, time in seconds, pixels uint8 [height, width, 3] BGR.

    Frames that cannot be read, or are missing from an image sequence, have numbers, too.
    """

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
        address: A path, a pattern like `frame_%04d.png`, a URL or a camera's number.
        relative: Where an annotated copy belongs below the output folder.
        live: A camera or a URL: it may have no end of its own.
    """

    name: str
    address: str | int
    relative: Path
    live: bool = False

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        return Path(self.address) if isinstance(self.address, str) and not self.live else None

    def open(self) -> OpenVideo:
        """Starts reading.

        Raises:
            SourceError: FFmpeg cannot open it, or has no decoder for it.
        """
        return OpenVideo(self)

    def numbers(self) -> list[int]:
        """Of the pictures that an image sequence has, ascending; empty for other videos."""
        path = Path(str(self.address))
        pattern = re.fullmatch(r"(.*?)%(\d*)d(.*)", path.name)
        if self.live or not pattern or path.exists() or not path.parent.is_dir():
            return []
        before, digits, after = pattern.groups()
        middle = slice(len(before), -len(after) or None)
        there = {each.name for each in path.parent.iterdir()}
        numbers = [int(name[middle]) for name in there if re.fullmatch("[0-9]+", name[middle])]
        return sorted({n for n in numbers if f"{before}{str(n).zfill(int(digits or 0))}{after}" in there})

    def arguments(self, begin: int = 0) -> dict[str, Any]:
        """What `av.open` gets; an image sequence is opened at the number `begin`."""
        if isinstance(self.address, int):
            return {"file": f"/dev/video{self.address}", "format": "v4l2"}
        if "://" in self.address:
            options = {"rtsp_transport": "tcp"} if self.address.startswith("rtsp") else {}
            return {"file": self.address, "timeout": TIMEOUT_S, "options": options}
        # Absolute: a colon in a name would be a protocol's.
        path = Path(self.address).absolute()
        if path.exists() or not re.search(r"%0?\d*d", path.name):
            return {"file": str(path)}
        options = {"pattern_type": "sequence", "start_number": str(begin)}
        return {"file": str(path), "format": "image2", "options": options}


class OpenVideo:
    """Frames of a `Video`, in order. A context manager.

    Their times are the container's, from its start, as players show them. Where it has none, or goes back in
    time like several files in a row, they follow from the frame rate, and for a live stream from the clock.

    Attributes:
        fps: Frames per second, on average.
        time_base: Unit of the container's times, seconds.
        frame_count: About how many frames there are, or None if nobody knows.
        problem: What is missing or damaged, once they have been iterated.
    """

    def __init__(self, video: Video, begin_at: int | None = None, threads: str = "AUTO") -> None:
        import av

        self._video = video
        # Whoever says where to begin knows the numbers.
        self._numbers = video.numbers() if begin_at is None else []
        arguments = video.arguments(begin_at or next(iter(self._numbers), 0))
        begin = time.monotonic()
        try:
            self._container: Any = av.open(**arguments)
        except (av.FFmpegError, OSError) as error:
            if isinstance(video.address, int) and isinstance(error, FileNotFoundError):
                cameras = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "none"
                raise SourceError(f"found cameras: {cameras}, expected /dev/video{video.address}") from error
            # FFmpeg says of a silent server that its data is invalid.
            silent = video.live and time.monotonic() - begin >= TIMEOUT_S
            reason = f"nothing came for {TIMEOUT_S:g} s" if silent else error.strerror
            raise SourceError(f"no video that FFmpeg can open: {reason}") from error
        stream: Any = self._container.streams.best("video") or next(iter(self._container.streams.video), None)
        if stream is None or stream.codec_context is None:
            self._container.close()
            if stream is None:
                raise SourceError("no video in it, only sound or text")
            raise SourceError(f"no decoder for its video, codec {_codec(arguments)}")
        if not video.live:
            stream.thread_type = threads
        self._stream = stream
        rate = stream.average_rate or stream.guessed_rate or Fraction(DEFAULT_FPS)
        self.fps = float(rate)
        self._clock = bool(video.live and self._container.format.flags & NO_TIMESTAMPS)
        self.time_base: Fraction = Fraction(1, 90_000) if self._clock else stream.time_base or 1 / rate
        self._duration_s = self._described_s(rate)
        total_s = self._duration_s or (self._container.duration or 0) / av.time_base
        self.frame_count: int | None = stream.frames or round(total_s * rate) or None
        if self._numbers:
            self.frame_count = self._numbers[-1] - self._numbers[0] + 1
        self._lost = False
        self._packets = self._unreadable = self._damaged = 0
        self.problem = ""

    def _described_s(self, rate: Fraction) -> float | None:
        """Seconds of video that the container promises, or None if it says nothing about it."""
        import av

        stream, container = self._stream, self._container
        # The count of frames includes those that were trimmed away in a phone, which nobody is shown.
        if "mov" in container.format.name and stream.duration:
            return float(stream.duration * stream.time_base)
        if stream.frames:
            return float(stream.frames / rate)
        # Matroska counts from 0 whenever the pictures begin.
        start_s = (container.start_time or 0) / av.time_base
        if tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - start_s
        if not container.duration or len(container.streams) > 1:  # Sound may be longer than the pictures.
            return None
        return container.duration / av.time_base - start_s

    def __enter__(self) -> OpenVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        import numpy as np

        frames, shown_s = 0, 0.0
        for frame, number, time_s in self._pictures() if self._numbers else self._timed():
            # Phones write frames as the sensor has them, and how to turn them.
            turns = 0 if frame.rotation % 90 else frame.rotation // 90
            pixels = np.rot90(frame.to_ndarray(format="bgr24"), turns)
            frames, shown_s = frames + 1, time_s
            self._damaged += frame.is_corrupt
            yield Frame(number, time_s, np.ascontiguousarray(pixels))
        if not frames:
            raise SourceError(f"no frame could be read of its video, codec {self._stream.codec_context.name}")
        # Not raised: the frames before, some still being answered, are good.
        self.problem = self._missing(frames, shown_s)

    def _pictures(self) -> Iterator[tuple[Any, int, float]]:
        """Those of an image sequence as `_timed` has them. FFmpeg itself ends at a gap or an empty file."""
        first, rest, threads = self._numbers[0], self._numbers, "AUTO"
        while rest:
            begin = rest[0]
            last = begin - (threads == "AUTO")
            with suppress(SourceError), OpenVideo(self._video, begin, threads) as run:
                for frame in run._decoded():
                    last = begin + frame.pts
                    yield frame, last - first, (last - first) / self.fps
                if threads != "AUTO":
                    last = max(last, begin + run._packets - 1)
            rest = [number for number in rest if number > last]
            threads = "SLICE"  # With several frames at once an error at the end hides those behind it.

    def _timed(self) -> Iterator[tuple[Any, int, float]]:
        """Frames with their numbers, and times in seconds."""
        import av

        start_s = self._container.start_time
        origin_s = None if start_s is None or self._video.live else start_s / av.time_base
        last_s = -1 / self.fps
        for count, frame in enumerate(self._decoded()):
            stamp_s = time.monotonic() if self._clock else frame.time
            expected_s = last_s + 1 / self.fps
            if stamp_s is not None and (origin_s is None or stamp_s - origin_s < last_s):
                origin_s = stamp_s - expected_s
            last_s = expected_s if stamp_s is None or origin_s is None else stamp_s - origin_s
            yield frame, count + self._unreadable, last_s

    def _decoded(self) -> Iterator[Any]:
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError):
                self._lost = True
                packet = None
            self._packets += bool(packet and packet.size)
            try:
                yield from self._stream.decode(packet)
            except av.error.EOFError:  # It was at its end already.
                pass
            except av.FFmpegError:
                self._unreadable += 1
            if packet is None:
                return

    def _missing(self, frames: int, shown_s: float) -> str:
        """What is wrong when no frame follows these, the last one shown at `shown_s`; nothing is empty."""
        count, live = self.frame_count, self._video.live
        damaged = f", {self._damaged} of them damaged" if self._damaged else ""
        if live and count is None:
            return f"stream lost after {frames} frames{damaged}; their results are kept"
        about = count or frames
        tolerance = max(2.0, min(self.fps, about / 20))
        end_s = self._duration_s
        whole = end_s is None or frames >= about - tolerance or shown_s >= end_s - tolerance / self.fps
        unreadable = about - frames if self._numbers else self._unreadable
        if whole and not self._lost and not unreadable and not damaged:
            return ""
        cause = "stream lost" if live and (self._lost or not whole) else "the file is cut or damaged"
        about = max(about, frames + unreadable)
        return f"{cause}: {frames} of about {about} frames could be read{damaged}; their results are kept"


def _codec(arguments: dict[str, Any]) -> str:
    """What FFmpeg calls a codec that it does not know: only its log has it."""
    import av

    av.logging.set_level(av.logging.WARNING)
    try:
        with av.logging.Capture() as lines, av.open(**arguments):
            pass
    finally:
        av.logging.set_level(None)
    found = re.search(r"Video: (?:none \()?([\w.\[\]-]+)", " ".join(line for _, _, line in lines))
    return found[1] if found else "unknown"
