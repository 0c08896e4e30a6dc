"""Hold a server under ten times the load that it can take, and see whether it suffers.

    python -m benchmarks.soak [--minutes 30] [--output-dir out/benchmarks]

Pictures of all sizes, some damaged, from clients of which some vanish. The server must answer or refuse every
request with its reason; answer what it answers when it is alone; let nobody wait for more answers than its
queues have places; and hold its memory. Exit code 1 if it fails in any of these. Writes soak.json.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, model_config_pb2

from benchmarks import memory, networks, report, soak_load, soak_pictures
from benchmarks.report import BenchmarkError
from benchmarks.triton_server import running
from export.errors import ExportError
from server import launcher

CHECKPOINT = str(networks.ROOT / "demo" / "coins.pth")
CAPACITY_S = 10.0
QUEUE, LAST = "centernet_preprocess", "centernet_postprocess"
MOST_GROWTH = 0.01
FEWEST_SAMPLES = 30


@dataclass
class Result:
    """What a soak found.

    Attributes:
        capacity: Pictures that the server answered in a second without a queue.
        places: Requests that wait in it at most, or are at work.
        outcomes: Of all requests.
        samples: Memory under full queues: about once a second, of a short time more often.
    """

    capacity: float
    places: int
    outcomes: soak_load.Outcomes = field(default_factory=soak_load.Outcomes)
    samples: list[memory.Sample] = field(default_factory=list)

    def failures(self, *, most_growth: float = MOST_GROWTH) -> list[str]:
        """What the server suffered, one line each; empty if nothing."""
        counts, found = self.outcomes.counts, []
        if not counts[soak_load.ANSWERED]:
            found.append("no request was answered")
        elif self.p99_overtaken > self.places:
            found.append(f"p99 waits for {self.p99_overtaken:.0f} answers, expected at most {self.places}")
        if not counts[soak_load.FULL]:
            found.append("no request was refused: this was no load")
        if counts[soak_load.WRONG]:
            found.append(f"{counts[soak_load.WRONG]} requests {soak_load.WRONG}")
        if counts[soak_load.UNEXPLAINED]:
            reasons = "; ".join(self.outcomes.unexplained)
            found.append(f"{counts[soak_load.UNEXPLAINED]} requests {soak_load.UNEXPLAINED}: {reasons}")
        if self.growth > most_growth:
            found.append(f"memory grew by {self.growth:.1%} in the last third, expected {most_growth:.0%}")
        return found

    @property
    def growth(self) -> float:
        """Of the memory in the last third of the time."""
        return memory.growth_of_last_third(self.samples)

    @property
    def p99_overtaken(self) -> float:
        """99 of 100 answered requests waited for no more answers to others."""
        return float(np.percentile(self.outcomes.overtaken(), 99))

    def facts(self) -> dict[str, Any]:
        """All that is measured, as JSON."""
        waits_s = [end - begin for begin, end in self.outcomes.answered]
        return {
            "capacity": self.capacity,
            "places": self.places,
            "counts": dict(self.outcomes.counts),
            "unexplained": self.outcomes.unexplained,
            "p50_s": float(np.percentile(waits_s, 50)) if waits_s else None,
            "p99_s": float(np.percentile(waits_s, 99)) if waits_s else None,
            "p99_overtaken": self.p99_overtaken if waits_s else None,
            "growth_of_last_third": self.growth,
            "memory": [{"time_s": one.time_s, "mib": one.mib} for one in self.samples],
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    environment = report.environment()
    try:
        with tempfile.TemporaryDirectory() as folder:
            repository = options.model_repository
            if repository is None:
                onnx = networks.export(CHECKPOINT, options.output_dir / "models")
                repository = networks.repository(onnx, Path(folder) / "model_repository")
            with running(repository) as server:
                result = soak(server, seconds=60 * options.minutes, load=options.load)
    except (BenchmarkError, ExportError) as error:
        print(f"benchmarks.soak: {error}", file=sys.stderr)
        return 1
    facts = {"environment": environment, "minutes": options.minutes, "load": options.load} | result.facts()
    report.write(options.output_dir, "soak", facts)
    print(json.dumps({key: value for key, value in facts.items() if key not in ("environment", "memory")}))
    failures = result.failures()
    for failure in failures:
        print(f"benchmarks.soak: {failure}", file=sys.stderr)
    return 1 if failures else 0


def soak(
    server: launcher.Server,
    *,
    seconds: float,
    load: float,
    sizes: dict[tuple[int, int], int] = soak_pictures.SIZES,
    capacity_s: float = CAPACITY_S,
) -> Result:
    """Measures what a quiet server can do, and sends it `load` times as much.

    Args:
        server: That nobody else asks.
        seconds: How long the load lasts at least, from when the queues are full.
        load: Times the capacity.
        sizes: Of the pictures; see `soak_pictures.SIZES`.
        capacity_s: How long the capacity is measured, seconds.
    """
    return asyncio.run(_soak(server, seconds, load, soak_pictures.draw(sizes), capacity_s))


async def _soak(
    server: launcher.Server, seconds: float, load: float, drawn: list[bytes], capacity_s: float
) -> Result:
    async with soak_load.Load(server.grpc_url, server.http_url) as client:
        pictures = await client.ask(drawn)
        damaged = [
            soak_pictures.Picture(soak_pictures.make_request(picture[: len(picture) // 2], 0.5))
            for picture in drawn
        ]
        capacity = await client.capacity(pictures, seconds=capacity_s)
        result = Result(capacity, _places(server.grpc_url), client.outcomes)
        end = asyncio.Event()
        run = asyncio.create_task(client.run(pictures, damaged, rate=load * capacity, end=end))
        # Memory rises until the queues are full, and all that they hold has been replaced.
        begin = time.monotonic()
        while client.outcomes.counts[soak_load.FULL] < 2 * result.places and time.monotonic() - begin < 60:
            await asyncio.sleep(0.1)
        begin = time.monotonic()
        # A machine that is busy elsewhere takes its time for a sample.
        while (time_s := time.monotonic() - begin) < seconds or len(result.samples) < FEWEST_SAMPLES:
            if run.done():
                break
            result.samples.append(await asyncio.to_thread(memory.sample, server.process.pid, time_s))
            if len(result.samples) % 30 == 1:
                print(f"{time_s:.0f} s: {result.samples[-1].total_mib:.0f} MiB", file=sys.stderr, flush=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(run), min(1.0, seconds / 100))
        end.set()
        await run
        return result


def _places(url: str) -> int:
    """How many pictures the server holds: before the network, in it and behind it."""
    with InferenceServerClient(url) as client:
        first, last = (client.get_model_config(name).config for name in (QUEUE, LAST))
    return places(first) + at_work(last)


def places(config: model_config_pb2.ModelConfig) -> int:
    """How many requests a model holds, in its queue and in the batches at work."""
    return config.dynamic_batching.default_queue_policy.max_queue_size + at_work(config)


def at_work(config: model_config_pb2.ModelConfig) -> int:
    """How many requests a model's batches hold."""
    instances = sum(group.count * max(len(group.gpus), 1) for group in config.instance_group)
    return instances * config.max_batch_size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--load", type=float, default=10, help="times what the server can take")
    parser.add_argument("--model-repository", type=Path, help="with a network, in place of the demo's")
    parser.add_argument("--output-dir", type=Path, default=Path("out/benchmarks"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
