"""The client: encoded pictures or arrays in, `Detections` out."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext
from itertools import repeat
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from centernet_image import contract

from clients import tensors
from clients.detections import Detections
from clients.errors import CenterNetError, DeadlineError, RejectedError, SharedMemoryError, UnavailableError
from clients.pictures import Picture, normalized
from clients.retry import RetryPolicy, with_retries
from clients.shared_memory import Region, RegionPool
from clients.tensors import Signature, Step
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
    network's size here and go to the ensemble `<model>_frames` if `model` is a plain detector; otherwise they
    are encoded.

    Args:
        url: `host:port` of the server.
        protocol: `grpc` or `http`.
        model: Name of the ensemble.
        concurrency: Requests in flight at once in `detect_many`.
        retry: When to try again, and the time limits.
        tls: Encrypts the connection.
        headers: Sent with every request, for example an API key.
        shared_memory: `none`, `system` or `cuda`: how a picture reaches a server on the same machine.
        camera: For models that answer 3-D boxes: the projection from metres to pixels, [3, 4].

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
        camera: np.ndarray | None = None,
    ) -> None:
        self.url = url
        self.model = model
        self.concurrency = concurrency
        self.camera = camera
        self._protocol = protocol
        self._retry = retry or RetryPolicy()
        self._transport: Transport = TRANSPORTS[protocol](url, tls=tls, headers=headers or {})
        self._regions = None if shared_memory == "none" else RegionPool(shared_memory, self._transport)
        self._frame_size: tuple[int, int] | None = None
        self._signature: Signature | None = None
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
        filled = [tensors.filled(self._transport.tensors, *pair) for pair in inputs.items()]
        return await self._with_retries(lambda: self._attempt(model, filled, None, None, None))

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

    async def signature(self) -> Signature:
        """What `model` takes and answers; asked once."""
        if self._signature is None:
            self._signature = Signature.of(await self.metadata(self.model))
        return self._signature

    async def detect(
        self,
        picture: Picture,
        *,
        threshold: float | None = None,
        camera: np.ndarray | None = None,
        step: Step | None = None,
    ) -> Detections:
        """Finds the objects in one picture.

        Args:
            picture: An encoded picture, as bytes, bytearray or memoryview. Or pixels: uint8
                [height, width, 3] in BGR order, grey uint8 [height, width] or [height, width, 1], a Pillow
                image.
            threshold: Lowest score to answer, instead of the server's own.
            camera: Of this picture, instead of the client's own.
            step: Its place in a sequence, for models that remember the picture before; alone by default.

        Raises:
            PictureError: `picture` is none of these. It is a TypeError and a ValueError, too.
            RejectedError: The server cannot decode the picture, or does not know the model; or a camera is
                missing, or not wanted.
            UnavailableError: No server answered, retries included.
            DeadlineError: No answer in time, retries included.
        """
        given = picture if type(picture) is bytes else await asyncio.to_thread(normalized, picture)
        signature = await self.signature()
        camera = self.camera if camera is None else camera
        signature.check_camera(camera)
        if isinstance(given, np.ndarray) and not signature.takes_frames:
            given = await asyncio.to_thread(tensors.encoded, given)
        model = self.model if isinstance(given, bytes) else f"{self.model}_frames"
        inputs, payload = await self._inputs(given)
        if camera is not None:
            projection = np.asarray(camera, np.float32)[np.newaxis]
            inputs.append(tensors.filled(self._transport.tensors, tensors.CAMERA, projection))
        if signature.remembers:
            step = step or Step.alone()
        async with self._regions.lend(payload) if self._regions else nullcontext() as region:
            if region:
                inputs[0].set_shared_memory(region.name, sum(part.nbytes for part in payload))
            result = await self._with_retries(lambda: self._attempt(model, inputs, threshold, region, step))
        return tensors.parse(result)

    async def detect_many(
        self,
        pictures: Iterable[T],
        *,
        load: Callable[[T], Picture] | None = None,
        threshold: float | None = None,
        video: bool = False,
    ) -> AsyncIterator[Answer[T]]:
        """Finds the objects in many pictures: `concurrency` requests in flight, answers in order.

        Args:
            pictures: Pictures, or anything that `load` makes a picture of. Drawn from as answers are taken.
            load: Called in a worker thread. An `OSError` or `CenterNetError` of it is the picture's answer.
            threshold: As in `detect`.
            video: They are the frames of one video, in order: to a model that remembers the frame before they
                go one by one, as one sequence.
        """
        window: deque[asyncio.Task[Answer[T]]] = deque()
        steps, most = await self.schedule(pictures, video=video)
        try:
            for picture, step in steps:
                answer = self.answer(picture, load=load, threshold=threshold, step=step)
                window.append(asyncio.create_task(answer))
                while window and (len(window) >= most or window[0].done()):
                    yield await window.popleft()
            while window:
                yield await window.popleft()
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)

    async def schedule(
        self, pictures: Iterable[T], *, video: bool
    ) -> tuple[Iterable[tuple[T, Step | None]], int]:
        """For `detect_many`: the pictures with their steps, and how many may be in flight."""
        if video and (await self.signature()).remembers:
            return Step.each(pictures), 1
        return zip(pictures, repeat(None), strict=False), self.concurrency

    async def answer(
        self,
        picture: T,
        *,
        load: Callable[[T], Picture] | None = None,
        threshold: float | None = None,
        step: Step | None = None,
    ) -> Answer[T]:
        """One picture of `detect_many`."""
        try:
            content: Any = await asyncio.to_thread(load, picture) if load else picture
            return Answer(picture, await self.detect(content, threshold=threshold, step=step), None)
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
        module = self._transport.tensors
        if isinstance(picture, bytes):
            image = tensors.input_of(module, contract.IMAGE, (1, 1))
            if not self._regions:
                image.set_data_from_numpy(np.array([[picture]], dtype=object))
            return [image], tensors.serialized(picture)
        image_size = np.array([picture.shape[:2]], np.int32)
        frame = await asyncio.to_thread(tensors.warped, picture, await self.frame_size())
        frames = tensors.input_of(module, contract.FRAME, frame.shape)
        if not self._regions:
            frames.set_data_from_numpy(frame)
        return [frames, tensors.filled(module, contract.IMAGE_SIZE, image_size)], [frame]

    async def _attempt(
        self, model: str, inputs: list[Any], threshold: float | None, region: Region | None, step: Step | None
    ) -> Any:
        more: dict[str, Any] = {}
        if threshold is not None:
            more["parameters"] = {"score_threshold": float(threshold)}
        if step:
            more |= {"sequence_id": step.sequence, "sequence_start": step.start, "sequence_end": step.end}
        try:
            if region:
                await region.register(self._transport)
            return await self._transport.call("infer", model, inputs, **more)
        except UnavailableError:
            if region:
                region.registered = False
            raise
        except RejectedError as error:
            # A server that was started again has forgotten the regions.
            if region and "Unable to find" in str(error):
                region.registered = False
                raise UnavailableError(str(error)) from error
            # It has forgotten the sequence, or never got the first picture: the sequence begins here, then.
            if step and not step.start and re.search("START flag|sequence_start", str(error)):
                return await self._attempt(model, inputs, threshold, region, step._replace(start=True))
            raise
