"""The client for programs without asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from clients.client import Answer, AsyncCenterNetClient
from clients.detections import Detections
from clients.pictures import Picture
from clients.tensors import Signature

T = TypeVar("T")


class CenterNetClient:
    """`AsyncCenterNetClient` for programs without asyncio, with the same arguments.

    The requests run on a thread of their own, so any thread may call. Use it as a context manager, or
    `close` it.
    """

    def __init__(self, url: str = "localhost:8001", **options: Any) -> None:
        self._client = AsyncCenterNetClient(url, **options)
        self._futures: set[Future[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="centernet-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> CenterNetClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes shared memory back and ends the connection."""
        if self._loop.is_closed():
            return
        try:
            for future in list(self._futures):
                future.cancel()
            self._run(self._client.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    @property
    def concurrency(self) -> int:
        """Requests in flight at once in `detect_many`."""
        return self._client.concurrency

    @property
    def camera(self) -> np.ndarray | None:
        """The projection of pictures that come without one of their own, [3, 4]."""
        return self._client.camera

    def check_ready(self) -> None:
        """See `AsyncCenterNetClient.check_ready`."""
        self._run(self._client.check_ready())

    def metadata(self, model: str) -> dict[str, Any]:
        """See `AsyncCenterNetClient.metadata`."""
        return self._run(self._client.metadata(model))

    def frame_size(self) -> tuple[int, int]:
        """See `AsyncCenterNetClient.frame_size`."""
        return self._run(self._client.frame_size())

    def signature(self) -> Signature:
        """See `AsyncCenterNetClient.signature`."""
        return self._run(self._client.signature())

    def detect(self, picture: Picture, **options: Any) -> Detections:
        """See `AsyncCenterNetClient.detect`, with its keyword arguments."""
        return self._run(self._client.detect(picture, **options))

    def detect_many(
        self,
        pictures: Iterable[T],
        *,
        load: Callable[[T], Picture] | None = None,
        threshold: float | None = None,
        video: bool = False,
        share: Callable[[], int] | None = None,
    ) -> Iterator[Answer[T]]:
        """See `AsyncCenterNetClient.detect_many`; `pictures` is iterated in the caller's thread.

        `share` says at any time how many requests may be in flight for these pictures, while other threads
        ask about others.
        """
        window: deque[Future[Answer[T]]] = deque()
        steps, most = self._run(self._client.schedule(pictures, video=video))
        try:
            for picture, step in steps:
                answer = self._client.answer(picture, load=load, threshold=threshold, step=step)
                window.append(self._submit(answer))
                while window and (len(window) >= min(most, share() if share else most) or window[0].done()):
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = self._submit(coroutine)
        try:
            return future.result()
        finally:
            future.cancel()
