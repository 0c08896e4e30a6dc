"""Load for a soak: pictures with known answers, and far more requests than the server can take.

Every request is accounted for: answered rightly or wrongly, refused with a reason, or left without either.
"""

import asyncio
import json
import struct
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import cv2
import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from demo.scenes import scene
from export import contract

MODEL = "centernet"
SIZES = ((64, 48),) * 4 + ((320, 240),) * 6 + ((640, 480),) * 6 + ((1280, 960),) * 4 + ((1920, 1080),) * 2 + ((4000, 3000),)
"""Width and height of the pictures, pixels; as often as they are asked for."""

DAMAGED_SHARE, VANISHING_SHARE = 0.01, 0.01
SILENCE_S = 150.0
"""Longer than a request may wait in all queues together."""

TOLERANCE = {"boxes_px": 1.0, "score": 0.01}
"""Batches of other sizes are computed by other kernels; a picture that is not the same differs by far more."""

REFUSALS = ("Exceeds maximum queue size", "Request timeout expired")


@dataclass(frozen=True)
class Picture:
    """A request, and what a quiet server answered to it: rows of box, score and class, or None if damaged."""

    request: service_pb2.ModelInferRequest
    expected: np.ndarray | None = None


@dataclass
class Outcomes:
    """What became of all requests.

    Attributes:
        counts: By what happened.
        served: When each request that took a place in the server began and ended, seconds.
        unexplained: The first few errors that are no refusal.
    """

    counts: Counter[str] = field(default_factory=Counter)
    served: list[tuple[float, float]] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)


def draw_pictures() -> list[bytes]:
    """Encoded pictures of coins of all `SIZES`."""
    random = np.random.default_rng(0)
    pictures = []
    for index, size in enumerate(SIZES):
        image = cv2.resize(scene(random)[0], size, interpolation=cv2.INTER_AREA)
        end = (".jpg", ".jpg", ".png", ".webp")[index % 4] if size[0] < 1000 else ".jpg"
        pictures.append(cv2.imencode(end, image)[1].tobytes())
    return pictures


def make_request(data: bytes, threshold: float) -> service_pb2.ModelInferRequest:
    """A request for the detections of one picture."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name=contract.IMAGE.name, datatype="BYTES", shape=[1, 1])
    del tensor
    request.raw_input_contents.append(struct.pack("<I", len(data)) + data)
    request.parameters["score_threshold"].string_param = repr(threshold)
    return request


def detections(response: service_pb2.ModelInferResponse) -> np.ndarray:
    """Rows of x1 y1 x2 y2, score, class."""
    arrays = dict(zip((o.name for o in response.outputs), response.raw_output_contents, strict=True))
    count = int(np.frombuffer(arrays["num_detections"], np.int32)[0])
    boxes = np.frombuffer(arrays["detection_boxes"], np.float32).reshape(-1, 4)
    scores = np.frombuffer(arrays["detection_scores"], np.float32)
    classes = np.frombuffer(arrays["detection_classes"], np.int32)
    return np.column_stack([boxes, scores, classes])[:count]


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether each has the other's rows, within the tolerance and in whatever order of near-equal scores."""
    if len(found) != len(expected):
        return False
    tolerance = np.array([TOLERANCE["boxes_px"]] * 4 + [TOLERANCE["score"], 0])
    near = (np.abs(found[:, None] - expected[None]) <= tolerance).all(-1)
    return bool(near.any(0).all() and near.any(1).all())


class Load:
    """Requests to one server, over several connections."""

    def __init__(self, url: str, http_url: str, *, connections: int = 4) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channels = [grpc.aio.insecure_channel(url, options) for _ in range(connections)]
        self._stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]
        self._host, _, port = http_url.rpartition(":")
        self._port = int(port)
        self._random = np.random.default_rng(0)
        self._tasks: set[asyncio.Task[None]] = set()
        self.outcomes = Outcomes()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def prepare(self, pictures: Sequence[bytes]) -> list[Picture]:
        """Asks for each picture alone, with a threshold in the widest gap between its scores."""
        prepared = []
        for data in pictures:
            everything = detections(await self._stubs[0].ModelInfer(make_request(data, 0.0)))
            scores = np.sort(everything[:, 4])[::-1]
            gaps = scores[:-1] - scores[1:]
            index = int(np.argmax(gaps[:50]))
            threshold = float((scores[index] + scores[index + 1]) / 2)
            request = make_request(data, threshold)
            prepared.append(Picture(request, detections(await self._stubs[0].ModelInfer(request))))
        return prepared

    async def capacity(self, pictures: Sequence[Picture], *, seconds: float, in_flight: int = 8) -> float:
        """Pictures answered a second where there are no more in flight than keep the server busy."""
        end, answered = time.monotonic() + seconds, 0

        async def worker(number: int) -> None:
            nonlocal answered
            while time.monotonic() < end:
                picture = pictures[int(self._random.integers(len(pictures)))]
                await self._stubs[number % len(self._stubs)].ModelInfer(picture.request)
                answered += 1

        begin = time.monotonic()
        await asyncio.gather(*(worker(number) for number in range(in_flight)))
        return answered / (time.monotonic() - begin)

    async def run(self, pictures: Sequence[Picture], damaged: Sequence[Picture], *, rate: float, seconds: float) -> None:
        """Offers `rate` requests a second, however many of them the server takes."""
        begin = time.monotonic()
        sent = 0
        while (now := time.monotonic() - begin) < seconds:
            while sent < now * rate and len(self._tasks) < 4000:
                self._start(pictures, damaged)
                sent += 1
            if len(self._tasks) >= 4000:
                sent = int(now * rate)
            await asyncio.sleep(0.002)
        await asyncio.gather(*self._tasks)

    def _start(self, pictures: Sequence[Picture], damaged: Sequence[Picture]) -> None:
        chance = self._random.random()
        pool = damaged if chance < DAMAGED_SHARE else pictures
        picture = pool[int(self._random.integers(len(pool)))]
        if chance > 1 - VANISHING_SHARE:
            coroutine = self._vanish(picture)
        else:
            coroutine = self._ask(picture)
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, picture: Picture) -> None:
        stub = self._stubs[int(self._random.integers(len(self._stubs)))]
        begin = time.monotonic()
        try:
            response = await stub.ModelInfer(picture.request, timeout=SILENCE_S)
        except grpc.aio.AioRpcError as error:
            what = self._refusal(error, picture)
        else:
            right = picture.expected is not None and same(detections(response), picture.expected)
            what = "answered" if right else "wrong"
        self.outcomes.counts[what] += 1
        if what != REFUSALS[0]:
            self.outcomes.served.append((begin, time.monotonic()))

    def _refusal(self, error: grpc.aio.AioRpcError, picture: Picture) -> str:
        details = error.details() or ""
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT and picture.expected is None:
            return "damaged, refused"
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            for reason in REFUSALS:
                if reason in details:
                    return reason
        if len(self.outcomes.unexplained) < 5:
            self.outcomes.unexplained.append(f"{error.code()}: {details}")
        return "without an answer or a reason"

    async def _vanish(self, picture: Picture) -> None:
        """Sends half a request, or a whole one, and is gone before the answer."""
        self.outcomes.counts["vanished"] += 1
        kind = self._random.integers(3)
        with suppress(OSError, grpc.aio.AioRpcError, asyncio.CancelledError, TimeoutError):
            if kind == 0:
                call = self._stubs[0].ModelInfer(picture.request, timeout=SILENCE_S)
                await asyncio.sleep(self._random.uniform(0, 0.2))
                call.cancel()
                return
            body = picture.request.raw_input_contents[0]
            image = {"name": contract.IMAGE.name, "datatype": "BYTES", "shape": [1, 1]}
            header = json.dumps({"inputs": [image | {"parameters": {"binary_data_size": len(body)}}]}).encode()
            lines = (
                f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: {self._host}\r\n"
                f"Content-Length: {len(header) + len(body)}\r\nInference-Header-Content-Length: {len(header)}\r\n\r\n"
            )
            _, writer = await asyncio.open_connection(self._host, self._port)
            data = lines.encode() + header + body
            writer.write(data[: len(data) // 2] if kind == 1 else data)
            async with asyncio.timeout(10):
                await writer.drain()
            await asyncio.sleep(self._random.uniform(0, 0.2))
            writer.transport.abort()
