"""Load for a soak: far more requests than a server can take, every one of them accounted for."""

import asyncio
import json
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import grpc
import numpy as np
from centernet_image import contract
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.soak_pictures import MODEL, Picture, detections, make_request, same, threshold_between

ANSWERED, WRONG, DAMAGED, VANISHED = "answered", "answered wrongly", "damaged, refused", "vanished"
FULL, LATE = "Exceeds maximum queue size", "Request timeout expired"
UNEXPLAINED = "without an answer or a reason"

DAMAGED_SHARE = VANISHING_SHARE = 0.01
SILENCE_S = 300.0
"""Far longer than a request may wait in all queues together."""

MOST_IN_FLIGHT = 4000
"""Beyond this no more is sent: the server has stopped refusing."""

CANCELLABLE = (2, 59)
"""The first Triton (25.06) that outlives gRPC clients that leave: its fixes #7840, #8078 and #8220."""

BUSY = 8
"""Requests in flight that keep a server busy without a queue."""


@dataclass
class Outcomes:
    """What became of all requests.

    Attributes:
        counts: How many, by what became of them.
        answered: When each that was answered began and ended, seconds.
        unexplained: The first few errors that are no refusal.
    """

    counts: Counter[str] = field(default_factory=Counter)
    answered: list[tuple[float, float]] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)

    def overtaken(self) -> list[int]:
        """How many others were answered while each waited: the length of the queues, whatever their speed."""
        ends = sorted(end for _, end in self.answered)
        return [bisect_left(ends, end) - bisect_right(ends, begin) for begin, end in self.answered]


class Load:
    """Requests to one server, over several connections; a context manager.

    Not by the project's client: what it costs for each request would be waiting, too, under such a load.

    Args:
        grpc_url: host:port.
        http_url: host:port.
        connections: Of gRPC.
    """

    def __init__(self, grpc_url: str, http_url: str, *, connections: int = 4) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channels = [grpc.aio.insecure_channel(grpc_url, options) for _ in range(connections)]
        self._stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]
        self._host, _, port = http_url.rpartition(":")
        self._port = int(port)
        self._random = np.random.default_rng(0)
        self._ways = ["half", "whole"]
        self._tasks: set[asyncio.Task[None]] = set()
        self.outcomes = Outcomes()

    async def __aenter__(self) -> "Load":
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    @property
    def in_flight(self) -> int:
        """Requests that wait for what becomes of them."""
        return len(self._tasks)

    async def ask(self, pictures: Sequence[bytes]) -> list[Picture]:
        """The pictures with their answers, asked one by one."""
        server = await self._stubs[0].ServerMetadata(service_pb2.ServerMetadataRequest())
        if tuple(map(int, server.version.split(".")[:2])) >= CANCELLABLE:
            self._ways.append("call")
        asked = []
        for data in pictures:
            everything = detections(await self._stubs[0].ModelInfer(make_request(data, 0.0)))
            request = make_request(data, threshold_between(everything[:, 4]))
            asked.append(Picture(request, detections(await self._stubs[0].ModelInfer(request))))
        return asked

    async def capacity(self, pictures: Sequence[Picture], *, seconds: float) -> float:
        """Pictures that the server answers in a second."""
        end, answered = time.monotonic() + seconds, 0

        async def worker(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
            nonlocal answered
            while time.monotonic() < end:
                await stub.ModelInfer(self._any(pictures).request)
                answered += 1

        begin = time.monotonic()
        await asyncio.gather(*(worker(self._stubs[i % len(self._stubs)]) for i in range(BUSY)))
        return answered / (time.monotonic() - begin)

    async def run(
        self, pictures: Sequence[Picture], damaged: Sequence[Picture], *, rate: float, end: asyncio.Event
    ) -> None:
        """Sends `rate` requests a second until `end`, whatever the server takes; then waits for the last."""
        begin, sent = time.monotonic(), 0
        while not end.is_set():
            for _ in range(sent, int((time.monotonic() - begin) * rate)):
                sent += 1
                if len(self._tasks) < MOST_IN_FLIGHT:
                    self._send(pictures, damaged)
            await asyncio.sleep(0.005)
        await asyncio.gather(*self._tasks)

    def _send(self, pictures: Sequence[Picture], damaged: Sequence[Picture]) -> None:
        chance = self._random.random()
        if chance < VANISHING_SHARE:
            request = self._vanish(self._any(pictures))
        else:
            request = self._request(self._any(damaged if chance > 1 - DAMAGED_SHARE else pictures))
        task = asyncio.create_task(request)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _any(self, pictures: Sequence[Picture]) -> Picture:
        return pictures[int(self._random.integers(len(pictures)))]

    async def _request(self, picture: Picture) -> None:
        stub = self._stubs[int(self._random.integers(len(self._stubs)))]
        begin = time.monotonic()
        try:
            response = await stub.ModelInfer(picture.request, timeout=SILENCE_S)
        except grpc.aio.AioRpcError as error:
            self.outcomes.counts[self._refusal(error, picture)] += 1
            return
        self.outcomes.answered.append((begin, time.monotonic()))
        right = picture.expected is not None and same(detections(response), picture.expected)
        self.outcomes.counts[ANSWERED if right else WRONG] += 1

    def _refusal(self, error: grpc.aio.AioRpcError, picture: Picture) -> str:
        details = error.details() or ""
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT and picture.expected is None:
            return DAMAGED
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            for reason in (FULL, LATE):
                if reason in details:
                    return reason
        if len(self.outcomes.unexplained) < 5:
            self.outcomes.unexplained.append(f"{error.code().name}: {details}")
        return UNEXPLAINED

    async def _vanish(self, picture: Picture) -> None:
        """Cancels a call, or drops the connection in the midst of a request or behind it."""
        self.outcomes.counts[VANISHED] += 1
        how = self._random.choice(self._ways)
        soon_s = self._random.uniform(0, 0.5)
        if how == "call":
            call = self._stubs[0].ModelInfer(picture.request)
            await asyncio.sleep(soon_s)
            call.cancel()
            return
        data = self._http(picture)
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(SILENCE_S):
                _, writer = await asyncio.open_connection(self._host, self._port)
                writer.write(data[: len(data) // 2] if how == "half" else data)
                await writer.drain()
                await asyncio.sleep(soon_s)
                writer.transport.abort()

    def _http(self, picture: Picture) -> bytes:
        (body,) = picture.request.raw_input_contents
        image = {"name": contract.IMAGE.name, "datatype": "BYTES", "shape": [1, 1]}
        header = json.dumps({"inputs": [image | {"parameters": {"binary_data_size": len(body)}}]}).encode()
        lines = (
            f"POST /v2/models/{MODEL}/infer HTTP/1.1",
            f"Host: {self._host}",
            f"Content-Length: {len(header) + len(body)}",
            f"Inference-Header-Content-Length: {len(header)}",
        )
        return "\r\n".join([*lines, "", ""]).encode() + header + body
