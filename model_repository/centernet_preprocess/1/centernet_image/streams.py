"""What a server keeps of each video between its frames: of so many videos, and until each ends."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from centernet_image.tasks.tracks import Tracker


class TooManyError(Exception):
    """As many streams as may be are there already."""


class Stream:
    """One video.

    Attributes:
        frame: The last one, uint8 [H, W, 3]; None before the first.
        boxes: What was found there, [D, 4] in pixels of the frame.
        tracker: Its identities.
    """

    def __init__(self) -> None:
        self.frame: np.ndarray | None = None
        self.boxes = np.zeros((0, 4), np.float32)
        self.tracker = Tracker()


class Streams:
    """Streams by their sequences' ids; those that nobody feeds for too long are forgotten."""

    def __init__(
        self, *, max_streams: int, idle_s: float, count: Callable[[int], object] = lambda change: None
    ) -> None:
        """Starts the thread that forgets.

        Args:
            max_streams: As many at a time.
            idle_s: Time between two frames of a stream.
            count: Is told by how many there are more or, below 0, fewer.
        """
        self._max_streams, self._idle_s, self._count = max_streams, idle_s, count
        self._streams: dict[int | str, Stream] = {}
        self._used: dict[int | str, float] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._forget, daemon=True)
        self._thread.start()

    @contextmanager
    def frame(self, sequence: int | str, *, start: bool, end: bool) -> Iterator[Stream]:
        """The stream of a frame, for as long as the frame takes.

        Raises:
            TooManyError: It is the first, and there is no room for another stream.
            ValueError: It is not the first, and its stream is not known.
        """
        with self._lock:
            if start:
                self._drop(sequence)
                if len(self._streams) >= self._max_streams:
                    raise TooManyError(
                        f"sequence {sequence}: found {self._max_streams} streams, limit max_streams is "
                        f"{self._max_streams}: try again when one has ended"
                    )
                self._streams[sequence] = Stream()
                self._count(1)
            elif sequence not in self._streams:
                raise ValueError(
                    f"sequence {sequence}: found no earlier frame of it, expected sequence_start on the "
                    f"first, and the next within {self._idle_s:g} s"
                )
            stream = self._streams[sequence]
            self._used[sequence] = float("inf")
        try:
            yield stream
        finally:
            with self._lock:
                self._used[sequence] = time.monotonic()
                if end:
                    self._drop(sequence)

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()

    def _drop(self, sequence: int | str) -> None:
        if self._streams.pop(sequence, None):
            del self._used[sequence]
            self._count(-1)

    def _forget(self) -> None:
        while not self._closed.wait(self._idle_s / 4):
            with self._lock:
                latest = time.monotonic() - self._idle_s
                for sequence in [each for each, used in self._used.items() if used < latest]:
                    self._drop(sequence)
