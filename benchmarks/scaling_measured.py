"""Two real servers behind Envoy under pictures that arrive at random, to compare the simulation with."""

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from centernet_image import contract
from tritonclient.grpc import InferenceServerClient

from benchmarks.balancer import Backend, Envoy
from benchmarks.report import BenchmarkError
from clients import AsyncCenterNetClient, RetryPolicy
from clients.errors import CenterNetError
from server.launcher import HOST, start, stop

Ask = Callable[[], Coroutine[Any, Any, None]]
NETWORK = "centernet_network"
SHARES = (0.3, 0.6, 0.8)
"""Of the capacity that was found."""


@dataclass(frozen=True)
class Measured:
    """A load and what it came to.

    Attributes:
        rate: Pictures a second that were sent.
        queue_s: Mean time in the network's queue, seconds.
        batches: Executions by their batch size: how many, and seconds in all.
        failed: Requests without an answer.
        latencies_s: Of the others, seconds.
    """

    rate: float
    queue_s: float
    batches: dict[int, tuple[int, float]]
    failed: int
    latencies_s: tuple[float, ...]


def fit(batches: dict[int, tuple[int, float]]) -> tuple[float, float]:
    """Seconds of a batch beyond its pictures, and of each picture: least squares over the executions."""
    sizes = np.array(list(batches), float)
    counts = np.array([count for count, _ in batches.values()], float)
    means = np.array([seconds / count for count, seconds in batches.values()])
    if len(batches) == 1:
        return 0.0, float(means[0] / sizes[0])
    slope, offset = np.polyfit(sizes, means, 1, w=np.sqrt(counts))
    # Neither is negative: what the noise of a short run takes away from one is the other's.
    if offset < 0:
        return 0.0, float((counts * means).sum() / (counts * sizes).sum())
    if slope < 0:
        return float((counts * means).sum() / counts.sum()), 0.0
    return float(offset), float(slope)


def measure(repository: Path, *, seconds: float) -> tuple[int, int, list[Measured]]:
    """Starts two servers of a model repository and loads them.

    Returns:
        The largest batch and the longest queue by the network's configuration; and the loads. The first one
        is lone requests: what they wait is Triton's way to the network, and how they vary is the noise.

    Raises:
        BenchmarkError: A server or Envoy does not start.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = []
        for number in range(2):
            server = start(repository, log=folder / f"server-{number}.log", timeout_s=120)
            stack.callback(stop, server.process, timeout_s=40)
            servers.append(server)
        backends = []
        for server in servers:
            http, grpc = (int(url.rpartition(":")[2]) for url in (server.http_url, server.grpc_url))
            backends.append(Backend(http=http, grpc=grpc, health=http))
        envoy = Envoy(folder, backends)
        stack.callback(envoy.stop)
        envoy.wait_for_servers(2)
        clients = [stack.enter_context(InferenceServerClient(server.grpc_url)) for server in servers]
        config = clients[0].get_model_config(NETWORK).config
        batch = max(config.dynamic_batching.preferred_batch_size, default=config.max_batch_size)
        queue = config.dynamic_batching.default_queue_policy.max_queue_size
        load = _Load(f"{HOST}:{envoy.grpc}", clients)
        capacity = asyncio.run(load.closed(16, seconds)).rate
        shares = [asyncio.run(load.poisson(share * capacity, seconds)) for share in SHARES]
        return batch, queue, [asyncio.run(load.closed(1, seconds)), *shares]


class _Load:
    """Frames for `centernet_frames`: the network's own queue is what is compared."""

    def __init__(self, url: str, servers: list[InferenceServerClient]) -> None:
        self._url, self._servers = url, servers

    async def closed(self, in_flight: int, seconds: float) -> Measured:
        """Keeps so many in flight."""

        async def load(ask: Ask) -> int:
            end, sent = time.monotonic() + seconds, 0

            async def again() -> None:
                nonlocal sent
                while time.monotonic() < end:
                    sent += 1
                    await ask()

            await asyncio.gather(*(again() for _ in range(in_flight)))
            return sent

        return await self._measured(load, seconds)

    async def poisson(self, rate: float, seconds: float) -> Measured:
        """Sends pictures at random times."""
        rng = random.Random(0)  # noqa: S311

        async def load(ask: Ask) -> int:
            tasks, begin, at = [], time.monotonic(), 0.0
            while (at := at + rng.expovariate(rate)) < seconds:
                await asyncio.sleep(max(0.0, begin + at - time.monotonic()))
                tasks.append(asyncio.create_task(ask()))
            await asyncio.gather(*tasks)
            return len(tasks)

        return await self._measured(load, seconds)

    async def _measured(self, load: Callable[[Ask], Coroutine[Any, Any, int]], seconds: float) -> Measured:
        latencies, failed = list[float](), 0
        async with self._client() as client:
            inputs = await self._inputs(client)

            async def ask() -> None:
                nonlocal failed
                begin = time.monotonic()
                try:
                    await client.infer("centernet_frames", inputs)
                    latencies.append(time.monotonic() - begin)
                except CenterNetError:
                    failed += 1

            before = self._counters()
            sent = await load(ask)
            after = self._counters()
        difference = {key: (after[key] - before[key]) for key in after}
        if not latencies:
            raise BenchmarkError("no request was answered: the servers' logs say why")
        sizes = sorted({key for key in difference if isinstance(key, int) and difference[key]})
        return Measured(
            rate=sent / seconds,
            queue_s=difference["queue"] / (difference["requests"] or 1) / 1e9,
            batches={size: (difference[size], difference["ns", size] / 1e9) for size in sizes},
            failed=failed,
            latencies_s=tuple(latencies),
        )

    def _client(self) -> AsyncCenterNetClient:
        return AsyncCenterNetClient(self._url, retry=RetryPolicy(retries=0, timeout_s=60))

    async def _inputs(self, client: AsyncCenterNetClient) -> dict[contract.Tensor, np.ndarray]:
        height, width = await client.frame_size()
        frame = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        return {contract.FRAME: frame, contract.IMAGE_SIZE: np.array([[height, width]], np.int32)}

    def _counters(self) -> Counter:
        """Of both servers: requests and their queue time, and executions by batch size and their time."""
        found: Counter = Counter()
        for server in self._servers:
            (model,) = server.get_inference_statistics(NETWORK).model_stats
            found["requests"] += model.inference_stats.queue.count
            found["queue"] += model.inference_stats.queue.ns
            for batch in model.batch_stats:
                parts = (batch.compute_input, batch.compute_infer, batch.compute_output)
                found[batch.batch_size] += batch.compute_infer.count
                found["ns", batch.batch_size] += sum(part.ns for part in parts)
        return found
