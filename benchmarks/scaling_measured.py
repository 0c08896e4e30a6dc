"""Two real servers behind Envoy under pictures that arrive at random, to compare the simulation with."""

import asyncio
import random
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from centernet_image import contract
from tritonclient.grpc import InferenceServerClient

from benchmarks.balancer import Backend, Envoy
from benchmarks.networks import NETWORK
from benchmarks.report import BenchmarkError
from clients import AsyncCenterNetClient, RetryPolicy
from clients.errors import CenterNetError
from server.launcher import HOST, start, stop

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
    """Starts two servers of a model repository and loads them with frames: the network's queue is compared.

    Returns:
        The largest batch and the longest queue by the network's configuration; and the loads. The first one
        is lone requests: what they wait is Triton's way to the network, and how they vary is the noise.

    Raises:
        BenchmarkError: A server or Envoy does not start.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clients, backends = [], []
        for number in range(2):
            server = start(repository, log=folder / f"server-{number}.log", timeout_s=120)
            stack.callback(stop, server.process, timeout_s=40)
            clients.append(stack.enter_context(InferenceServerClient(server.grpc_url)))
            http, grpc = (int(url.rpartition(":")[2]) for url in (server.http_url, server.grpc_url))
            backends.append(Backend(http=http, grpc=grpc, health=http))
        envoy = Envoy(folder, backends)
        stack.callback(envoy.stop)
        envoy.wait_for_servers(2)
        config = clients[0].get_model_config(NETWORK).config
        batch = max(config.dynamic_batching.preferred_batch_size, default=config.max_batch_size)
        queue = config.dynamic_batching.default_queue_policy.max_queue_size

        def load(**how: float) -> Measured:
            return asyncio.run(_load(f"{HOST}:{envoy.grpc}", clients, seconds, **how))

        capacity = load(in_flight=16).rate
        shares = [load(rate=share * capacity) for share in SHARES]
        return batch, queue, [load(in_flight=1), *shares]


async def _load(
    url: str, servers: list[InferenceServerClient], seconds: float, *, in_flight: float = 0, rate: float = 0
) -> Measured:
    """Keeps so many requests in flight, or sends so many a second at random times."""
    latencies, failed, sent = list[float](), 0, 0
    async with AsyncCenterNetClient(url, retry=RetryPolicy(retries=0, timeout_s=60)) as client:
        height, width = await client.frame_size()
        frame = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        inputs: dict[contract.Tensor, np.ndarray] = {contract.FRAME: frame}
        inputs[contract.IMAGE_SIZE] = np.array([[height, width]], np.int32)

        async def ask() -> None:
            nonlocal failed, sent
            sent, asked = sent + 1, time.monotonic()
            try:
                await client.infer("centernet_frames", inputs)
                latencies.append(time.monotonic() - asked)
            except CenterNetError:
                failed += 1

        async def again() -> None:
            while time.monotonic() < begin + seconds:
                await ask()

        before, begin, at = _counters(servers), time.monotonic(), 0.0
        tasks = [asyncio.create_task(again()) for _ in range(int(in_flight))]
        rng = random.Random(0)  # noqa: S311
        while rate and (at := at + rng.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, begin + at - time.monotonic()))
            tasks.append(asyncio.create_task(ask()))
        await asyncio.gather(*tasks)
        after = _counters(servers)
    if not latencies:
        raise BenchmarkError("no request was answered: the servers' logs say why")
    difference = {key: after[key] - before[key] for key in after}
    sizes = sorted({key for key in difference if isinstance(key, int) and difference[key]})
    return Measured(
        rate=sent / seconds,
        queue_s=difference["queue"] / (difference["requests"] or 1) / 1e9,
        batches={size: (difference[size], difference["ns", size] / 1e9) for size in sizes},
        failed=failed,
        latencies_s=tuple(latencies),
    )


def _counters(servers: list[InferenceServerClient]) -> Counter:
    """Of all servers: requests and their queue time, and executions by batch size and their time."""
    found: Counter = Counter()
    for server in servers:
        (model,) = server.get_inference_statistics(NETWORK).model_stats
        found["requests"] += model.inference_stats.queue.count
        found["queue"] += model.inference_stats.queue.ns
        for batch in model.batch_stats:
            parts = (batch.compute_input, batch.compute_infer, batch.compute_output)
            found[batch.batch_size] += batch.compute_infer.count
            found["ns", batch.batch_size] += sum(part.ns for part in parts)
    return found
