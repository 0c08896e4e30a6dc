"""Live streams: frames as even as can be, whatever is not taken in time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from clients.video.source import Frame, OpenVideo

WAITING = 4
"""Frames that may wait. More would be answered late, and pixels are large."""

PAUSE_S = 0.2
"""Between two looks whether the run is being stopped."""


class Latest:
    """Frames of a live stream, read as they come: of those that nobody takes in time most are dropped.

    Several are taken at once, for a batch of the server. Those that wait are therefore thinned evenly and end
    with the newest: with those alone objects would move far between two batches, and a tracker lose them.

    A context manager; its end waits for the reader, which a silent stream holds for `source.TIMEOUT_S`.

    Args:
        stream: The stream.
        stop: Ends the frames when it is set.

    Attributes:
        dropped: How many frames were read and not taken.
    """

    def __init__(self, stream: OpenVideo, stop: threading.Event) -> None:
        self.dropped = 0
        self._stream = stream
        self._stop = stop
        self._left = False
        self._taken = -1
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._reader = threading.Thread(target=self._read, name="live stream", daemon=True)

    def __enter__(self) -> Latest:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        self._reader.join()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                while not self._frames:
                    if self._stop.is_set():
                        return
                    if not self._reader.is_alive():
                        if self._error:
                            raise self._error
                        return
                    self._changed.wait(PAUSE_S)
                frame = self._frames.popleft()
                self._taken = frame.number
            yield frame

    def _read(self) -> None:
        try:
            for frame in self._stream:
                with self._changed:
                    self._frames.append(frame)
                    if len(self._frames) > WAITING:
                        self._thin()
                    self._changed.notify()
                if self._left or self._stop.is_set():
                    return
        except Exception as error:  # It belongs to whoever takes the frames.
            self._error = error

    def _thin(self) -> None:
        """Drops the frame that leaves the smallest gap between its neighbours; never the newest."""
        numbers = [self._taken, *(frame.number for frame in self._frames)]
        gaps = [after - before for before, after in zip(numbers, numbers[2:], strict=False)]
        del self._frames[gaps.index(min(gaps))]
        self.dropped += 1
