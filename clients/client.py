"""The client: encoded pictures or arrays in, `Detections` out."""

from __future__ import annotations

import asyncio
import logging
import struct
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from centernet_image import contract

from clients.detections import Detections
from clients.errors import (
    CenterNetError,
    DeadlineError,
    RejectedError,
    SharedMemoryError,
    UnavailableError,
)
from clients.pictures import Picture, normalized
from clients.retry import RetryPolicy, with_retries
from clients.shared_memory import Region, RegionPool
from clients.transport import TRANSPORTS, Tls, Transport

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")


class Answer(NamedTuple, Generic[T]):
    """What became of one of many pictures: `detections`, or else `error`."""

    picture: T
    detections: Detections | None
    error: CenterNetError | OSError | None


class AsyncCenterNetClient:
    """Detects objects through a Triton server, from asyncio.

    Encoded pictures go to the ensemble `model`, which decodes them on the server. Pixels are warped to the
    network's size here and go to the ensemble `<model>_frames`.

    Args:
        url: `host:port` of the server.
        protocol: `grpc` or `http`.
        model: Name of the ensemble.
        concurrency: Requests in flight at once in `detect_many`.
        retry: When to try again, and the time limits.
        tls: Encrypts the connection.
        headers: Sent with every request, for example an API key.
        shared_memory: `none`, `system` or `cuda`: how a picture reaches a server on the same machine.

    Raises:
        SharedMemoryError: `cuda`, and there is no GPU.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        protocol: str = "grpc",
        model: str = "centernet",
        concurrency: int = 8,
        retry: RetryPolicy | None = None,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        shared_memory: str = "none",
    ) -> None:
        self.url = url
        self.model = model
        self.concurrency = concurrency
        self._protocol = protocol
        self._retry = retry or RetryPolicy()
        self._transport: Transport = TRANSPORTS[protocol](url, tls=tls, headers=headers or {})
        self._regions = None if shared_memory == "none" else RegionPool(shared_memory, self._transport)
        self._frame_size: tuple[int, int] | None = None
        self._away = False

    async def __aenter__(self) -> AsyncCenterNetClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Takes shared memory back and ends the connection."""
        try:
            if self._regions:
                await self._regions.close()
        finally:
            await self._transport.close()

    async def check_ready(self) -> None:
        """Asks once, without retries, whether the server can detect.

        Raises:
            UnavailableError: Nothing answers at the address, or the model is not ready.
            SharedMemoryError: The server cannot read the client's memory.
        """
        try:
            async with asyncio.timeout(self._retry.timeout_s):
                ready = await self._transport.call("is_model_ready", self.model)
                if ready and self._regions:
                    async with self._regions.lend([np.zeros(1, np.uint8)]) as region:
                        await region.register(self._transport)
        except (CenterNetError, TimeoutError) as error:
            if isinstance(error, SharedMemoryError):
                raise
            reason = str(error) or f"no answer within {self._retry.timeout_s:g} s"
            raise UnavailableError(
                f"no Triton server answers at {self.url} ({self._protocol}): {reason}"
            ) from error
        if not ready:
            raise UnavailableError(
                f"model '{self.model}' is not ready at {self.url}: the server's log says why"
            )

    async def metadata(self, model: str) -> dict[str, Any]:
        """Triton's metadata of a model of the server, as JSON.

        Raises:
            CenterNetError: The server does not have it, or does not answer.
        """
        return await self._with_retries(lambda: self._transport.json("get_model_metadata", model))

    async def config(self, model: str) -> dict[str, Any]:
        """Triton's configuration of a model of the server, as JSON; raises as `metadata` does."""
        config = await self._with_retries(lambda: self._transport.json("get_model_config", model))
        return config.get("config", config)  # gRPC puts it into an envelope.

    async def statistics(self) -> dict[str, Any]:
        """Triton's statistics of all models of the server, as JSON; raises as `metadata` does."""
        return await self._with_retries(lambda: self._transport.json("get_inference_statistics"))

    async def infer(self, model: str, inputs: Mapping[contract.Tensor, np.ndarray]) -> Any:
        """Asks any model of the server; answers tritonclient's result. Raises as `detect` does."""
        tensors = [self._input(tensor, array.shape) for tensor, array in inputs.items()]
        for tensor, array in zip(tensors, inputs.values(), strict=True):
            tensor.set_data_from_numpy(array)
        return await self._with_retries(lambda: self._attempt(model, tensors, None, None))

    async def control(self, method: str, model: str) -> None:
        """`load_model` or `unload_model`, if the server lets this client; without retries.

        Raises:
            CenterNetError: It does not, or the model cannot be loaded.
        """
        await self._transport.call(method, model)

    async def frame_size(self) -> tuple[int, int]:
        """Height and width of the network's input, pixels."""
        if self._frame_size is None:
            metadata = await self.metadata(f"{self.model}_network")
            shapes = {tensor["name"]: tensor["shape"] for tensor in metadata["inputs"]}
            _, height, width, _ = map(int, shapes[contract.FRAME.name])
            self._frame_size = height, width
        return self._frame_size

    async def detect(self, picture: Picture, *, threshold: float | None = None) -> Detections:
        """Finds the objects in one picture.

        Args:
            picture: An encoded picture, as bytes, bytearray or memoryview. Or pixels: uint8
                [height, width, 3] in BGR order, grey uint8 [height, width] or [height, width, 1], a Pillow
                image.
            threshold: Lowest score to answer, instead of the server's own.

        Raises:
            PictureError: `picture` is none of these. It is a TypeError and a ValueError, too.
            RejectedError: The server cannot decode the picture, or does not know the model.
            UnavailableError: No server answered, retries included.
            DeadlineError: No answer in time, retries included.
        """
        given = picture if isinstance(picture, bytes) else await asyncio.to_thread(normalized, picture)
        model = self.model if isinstance(given, bytes) else f"{self.model}_frames"
        inputs, payload = await self._inputs(given)
        async with self._regions.lend(payload) if self._regions else nullcontext() as region:
            if region:
                inputs[0].set_shared_memory(region.name, sum(part.nbytes for part in payload))
            result = await self._with_retries(lambda: self._attempt(model, inputs, threshold, region))
        return _parse(result)

    async def detect_many(
        self,
        pictures: Iterable[T],
        *,
        load: Callable[[T], Picture] | None = None,
        threshold: float | None = None,
    ) -> AsyncIterator[Answer[T]]:
        """Finds the objects in many pictures: `concurrency` requests in flight, answers in order.

        Args:
            pictures: Pictures, or anything that `load` makes a picture of. Drawn from as answers are taken.
            load: Called in a worker thread. An `OSError` or `CenterNetError` of it is the picture's answer.
            threshold: As in `detect`.
        """
        window: deque[asyncio.Task[Answer[T]]] = deque()
        try:
            for picture in pictures:
                window.append(asyncio.create_task(self.answer(picture, load=load, threshold=threshold)))
                while window and (len(window) >= self.concurrency or window[0].done()):
                    yield await window.popleft()
            while window:
                yield await window.popleft()
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)

    async def answer(
        self, picture: T, *, load: Callable[[T], Picture] | None = None, threshold: float | None = None
    ) -> Answer[T]:
        """One picture of `detect_many`."""
        try:
            content: Any = await asyncio.to_thread(load, picture) if load else picture
            return Answer(picture, await self.detect(content, threshold=threshold), None)
        except (OSError, CenterNetError) as error:
            return Answer(picture, None, error)

    async def _with_retries(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Says once, for all requests in flight, that the server is away; a lone hiccup is not worth it."""

        def on_pause(error: CenterNetError, retry: int) -> None:
            if (retry or isinstance(error, DeadlineError)) and not self._away:
                self._away = True
                LOGGER.warning("%s: %s; trying again for up to %g s", self.url, error, self._retry.deadline_s)

        result = await with_retries(attempt, self._retry, on_pause)
        self._away = False
        return result

    async def _inputs(self, picture: bytes | np.ndarray) -> tuple[list[Any], list[np.ndarray]]:
        """The request's inputs; the parts that go through shared memory, if any does, are the first one's."""
        if isinstance(picture, bytes):
            header = np.frombuffer(struct.pack("<I", len(picture)), np.uint8)
            image = self._input(contract.IMAGE, (1, 1))
            if not self._regions:
                image.set_data_from_numpy(np.array([[picture]], dtype=object))
            return [image], [header, np.frombuffer(picture, np.uint8)]
        height, width = picture.shape[:2]
        frame = await asyncio.to_thread(_warp, picture, await self.frame_size())
        frames, size = self._input(contract.FRAME, frame.shape), self._input(contract.IMAGE_SIZE, (1, 2))
        size.set_data_from_numpy(np.array([[height, width]], np.int32))
        if not self._regions:
            frames.set_data_from_numpy(frame)
        return [frames, size], [frame]

    def _input(self, tensor: contract.Tensor, shape: tuple[int, ...]) -> Any:
        datatype = "BYTES" if tensor.dtype == "STRING" else tensor.dtype
        return self._transport.tensors.InferInput(tensor.name, list(shape), datatype)

    async def _attempt(
        self, model: str, inputs: list[Any], threshold: float | None, region: Region | None
    ) -> Any:
        parameters = None if threshold is None else {"score_threshold": float(threshold)}
        try:
            if region:
                await region.register(self._transport)
            return await self._transport.call("infer", model, inputs, parameters=parameters)
        except UnavailableError:
            if region:
                region.registered = False
            raise
        except RejectedError as error:
            # A server that was started again has forgotten the regions.
            if region and "Unable to find" in str(error):
                region.registered = False
                raise UnavailableError(str(error)) from error
            raise


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

    def check_ready(self) -> None:
        """See `AsyncCenterNetClient.check_ready`."""
        self._run(self._client.check_ready())

    def metadata(self, model: str) -> dict[str, Any]:
        """See `AsyncCenterNetClient.metadata`."""
        return self._run(self._client.metadata(model))

    def frame_size(self) -> tuple[int, int]:
        """See `AsyncCenterNetClient.frame_size`."""
        return self._run(self._client.frame_size())

    def detect(self, picture: Picture, *, threshold: float | None = None) -> Detections:
        """See `AsyncCenterNetClient.detect`."""
        return self._run(self._client.detect(picture, threshold=threshold))

    def detect_many(
        self,
        pictures: Iterable[T],
        *,
        load: Callable[[T], Picture] | None = None,
        threshold: float | None = None,
    ) -> Iterator[Answer[T]]:
        """See `AsyncCenterNetClient.detect_many`; `pictures` is iterated in the caller's thread."""
        window: deque[Future[Answer[T]]] = deque()
        try:
            for picture in pictures:
                window.append(self._submit(self._client.answer(picture, load=load, threshold=threshold)))
                while window and (len(window) >= self._client.concurrency or window[0].done()):
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


def _warp(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The network's frame, uint8 [1, H, W, 3], of pixels uint8 [height, width, 3]."""
    from centernet_image.geometry import warp  # brings OpenCV, which encoded pictures do without

    return warp(picture, size)[np.newaxis]


def _parse(result: Any) -> Detections:
    count = int(result.as_numpy(contract.NUM_DETECTIONS.name).flat[0])
    xyxy, scores, class_ids, labels = (
        result.as_numpy(tensor.name)[0, :count] for tensor in contract.DETECTIONS[1:]
    )
    return Detections(xyxy, scores, class_ids, tuple(map(_text, labels)))


def _text(label: bytes) -> str:
    """UTF-8; other bytes, which no server of this project sends, stay visible."""
    return label.decode("utf-8", "backslashreplace")
