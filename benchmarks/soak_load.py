"""Load for a soak: far more requests than a server can take, every one of them accounted for."""

import asyncio
import json
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from centernet_image import contract

from benchmarks.soak_pictures import Picture, rows, same, threshold_between
from clients import AsyncCenterNetClient, RetryPolicy
from clients.errors import CenterNetError, RejectedError, UnavailableError
from server import launcher

ANSWERED, WRONG, DAMAGED, VANISHED = "answered", "answered wrongly", "damaged, refused", "vanished"
FULL, LATE = "Exceeds maximum queue size", "Request timeout expired"
UNEXPLAINED = "without an answer or a reason"

DAMAGED_SHARE = VANISHING_SHARE = 0.01
SILENCE_S = 300.0
"""Far longer than a request may wait in all queues together."""

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
    """Requests to one server; a context manager.

    Args:
        server: The server.
        cancels: Whether clients leave in the midst of gRPC calls, too.
    """

    def __init__(self, server: launcher.Server, *, cancels: bool) -> None:
        patience = RetryPolicy(retries=0, timeout_s=SILENCE_S, deadline_s=SILENCE_S)
        self._client = AsyncCenterNetClient(server.grpc_url, retry=patience)
        self._http = server.http_url
        self._random = np.random.default_rng(0)
        self._ways = ["half", "whole", *(["call"] if cancels else [])]
        self._tasks: set[asyncio.Task[None]] = set()
        self.outcomes = Outcomes()

    async def __aenter__(self) -> "Load":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, pictures: Sequence[bytes]) -> list[Picture]:
        """The pictures with their answers, asked one by one."""
        asked = []
        for data in pictures:
            everything = await self._client.detect(data, threshold=0.0)
            threshold = threshold_between(everything.scores)
            asked.append(Picture(data, threshold, rows(await self._client.detect(data, threshold=threshold))))
        return asked

    async def capacity(self, pictures: Sequence[Picture], *, seconds: float) -> float:
        """Pictures that the server answers in a second."""
        begin, answered = time.monotonic(), 0

        async def worker() -> None:
            nonlocal answered
            while time.monotonic() < begin + seconds:
                await self._client.detect(self._any(pictures).data)
                answered += 1

        await asyncio.gather(*(worker() for _ in range(BUSY)))
        return answered / (time.monotonic() - begin)

    async def run(
        self,
        pictures: Sequence[Picture],
        damaged: Sequence[Picture],
        *,
        rate: float,
        most: int,
        end: asyncio.Event,
    ) -> None:
        """Sends `rate` requests a second until `end`, whatever the server takes; then waits for the last.

        While `most` are in flight none is sent: where a busy machine reads them late, they would wait in
        sockets, and that wait would be taken for the server's.
        """
        begin, sent = time.monotonic(), 0
        while not end.is_set():
            for _ in range(sent, int((time.monotonic() - begin) * rate)):
                sent += 1
                if len(self._tasks) < most:
                    chance = self._random.random()
                    if chance < VANISHING_SHARE:
                        request = self._vanish(self._any(pictures))
                    else:
                        request = self._ask(self._any(damaged if chance > 1 - DAMAGED_SHARE else pictures))
                    task = asyncio.create_task(request)
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0.005)
        await asyncio.gather(*self._tasks)

    def _any(self, pictures: Sequence[Picture]) -> Picture:
        return pictures[int(self._random.integers(len(pictures)))]

    async def _ask(self, picture: Picture) -> None:
        begin = time.monotonic()
        try:
            found = await self._client.detect(picture.data, threshold=picture.threshold)
        except CenterNetError as error:
            self.outcomes.counts[self._refusal(error, picture)] += 1
            return
        self.outcomes.answered.append((begin, time.monotonic()))
        right = picture.expected is not None and same(rows(found), picture.expected)
        self.outcomes.counts[ANSWERED if right else WRONG] += 1

    def _refusal(self, error: CenterNetError, picture: Picture) -> str:
        if isinstance(error, RejectedError) and picture.expected is None:
            return DAMAGED
        if isinstance(error, UnavailableError):
            for reason in (FULL, LATE):
                if reason in str(error):
                    return reason
        if len(self.outcomes.unexplained) < 5:
            self.outcomes.unexplained.append(f"{type(error).__name__}: {error}")
        return UNEXPLAINED

    async def _vanish(self, picture: Picture) -> None:
        """Cancels a call, or drops the connection in the midst of a request or behind it."""
        self.outcomes.counts[VANISHED] += 1
        how = self._random.choice(self._ways)
        soon_s = self._random.uniform(0, 0.5)
        if how == "call":
            with suppress(TimeoutError, CenterNetError):
                await asyncio.wait_for(self._client.detect(picture.data), soon_s)
            return
        data = self._http_request(picture.data)
        host, _, port = self._http.rpartition(":")
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(SILENCE_S):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(data[: len(data) // 2] if how == "half" else data)
                await writer.drain()
                await asyncio.sleep(soon_s)
                writer.transport.abort()

    def _http_request(self, data: bytes) -> bytes:
        """As a client writes it, which could not stop in the midst of it."""
        body = len(data).to_bytes(4, "little") + data
        image = {"name": contract.IMAGE.name, "datatype": "BYTES", "shape": [1, 1]}
        header = json.dumps({"inputs": [image | {"parameters": {"binary_data_size": len(body)}}]}).encode()
        lines = (
            "POST /v2/models/centernet/infer HTTP/1.1",
            f"Host: {self._http}",
            f"Content-Length: {len(header) + len(body)}",
            f"Inference-Header-Content-Length: {len(header)}",
        )
        return "\r\n".join([*lines, "", ""]).encode() + header + body
