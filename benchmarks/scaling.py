"""Queue time, bursts and autoscaling of many servers, simulated with measured service times.

    python -m benchmarks.scaling --batch-ms 1.1 --picture-ms 0.26 --rate 20000 --replicas 4
    python -m benchmarks.scaling --batch-ms 1.1 --picture-ms 0.26 --rate 2000 --burst 10 --autoscale 2,32
    python -m benchmarks.scaling --measure REPOSITORY   # two real servers on this machine, behind Envoy

Each server is one queue in front of a network that takes a batch of what waits; a balancer sends each picture
to the server with the fewest in flight. The autoscaler is Kubernetes' (desired = ready x metric / target, 10
% tolerance, at most double in 30 s as the chart has it) on the mean queue time of the last minute.
"""

import argparse
import math
import random
import statistics
import sys
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simpy

from benchmarks import scaling_measured
from benchmarks.report import BenchmarkError, positive, records
from server.launcher import StartError

Process = Generator[simpy.Event, None, None]

PERIOD_S = 15
"""Of the autoscaler, and of the metrics that it reads."""

DOUBLING_S = 30


@dataclass(frozen=True, kw_only=True)
class Service:
    """What one server does.

    Attributes:
        batch_s: Time of a batch beyond that of its pictures, seconds.
        picture_s: Time of each picture in a batch, seconds.
        max_batch: Pictures in a batch.
        max_queue: Pictures that wait; more are refused.
        noise: Factors on a batch's time, one of which is drawn for each; their mean is 1.
    """

    batch_s: float
    picture_s: float
    max_batch: int = 32
    max_queue: int = 256
    noise: tuple[float, ...] = (1.0,)

    @property
    def capacity(self) -> float:
        """Pictures a second in full batches."""
        return self.max_batch / (self.batch_s + self.max_batch * self.picture_s)


@dataclass(frozen=True, kw_only=True)
class Autoscaler:
    """Kubernetes' rule.

    Attributes:
        most: Servers at most.
        target_s: Mean queue time to hold, seconds.
        start_s: From the decision to a ready server, seconds.
    """

    most: int
    target_s: float
    start_s: float


@dataclass
class Outcome:
    """Queue times in seconds, refusals, the number of servers over time, and how many batches there were."""

    waits_s: list[float] = field(default_factory=list)
    refused: int = 0
    servers: list[tuple[float, int]] = field(default_factory=list)
    batches: int = 0

    @property
    def mean_batch(self) -> float:
        """Pictures in an execution."""
        return len(self.waits_s) / max(self.batches, 1)

    def percentile_s(self, share: float) -> float:
        """Queue time that this share of the pictures does not exceed."""
        ordered = sorted(self.waits_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Server:
    """One queue and one network."""

    def __init__(
        self, environment: simpy.Environment, service: Service, outcome: Outcome, rng: random.Random
    ) -> None:
        self.environment, self.service, self.outcome, self.rng = environment, service, outcome, rng
        self.queue: deque[float] = deque()
        self.running = 0
        self.recent: deque[tuple[float, float]] = deque()
        self._arrived = environment.event()
        environment.process(self._serve())

    @property
    def in_flight(self) -> int:
        """Pictures that wait or are computed."""
        return len(self.queue) + self.running

    def arrive(self) -> None:
        """Takes a picture in, or refuses it."""
        if len(self.queue) >= self.service.max_queue:
            self.outcome.refused += 1
            return
        self.queue.append(self.environment.now)
        if not self._arrived.triggered:
            self._arrived.succeed()

    def queue_time_s(self) -> float:
        """Mean of the last minute, what `centernet_queue_seconds` is."""
        while self.recent and self.recent[0][0] < self.environment.now - 60:
            self.recent.popleft()
        return statistics.fmean(wait for _, wait in self.recent) if self.recent else 0.0

    def _serve(self) -> Process:
        while True:
            if not self.queue:
                self._arrived = self.environment.event()
                yield self._arrived
            self.running = min(len(self.queue), self.service.max_batch)
            now = self.environment.now
            self.outcome.batches += 1
            for _ in range(self.running):
                wait = now - self.queue.popleft()
                self.outcome.waits_s.append(wait)
                self.recent.append((now, wait))
            seconds = self.service.batch_s + self.running * self.service.picture_s
            yield self.environment.timeout(seconds * self.rng.choice(self.service.noise))
            self.running = 0


def simulate(
    service: Service,
    *,
    rate: float,
    seconds: float,
    replicas: int,
    burst: float = 1.0,
    autoscaler: Autoscaler | None = None,
    seed: int = 0,
) -> Outcome:
    """Runs servers under pictures that arrive at random.

    Args:
        service: Each server.
        rate: Pictures a second, of a Poisson process.
        seconds: Simulated time.
        replicas: Servers at the start.
        burst: Factor on the rate in the middle third of the time.
        autoscaler: Changes the number of servers; none by default.
        seed: Decides the arrivals.
    """
    environment, outcome, rng = simpy.Environment(), Outcome(), random.Random(seed)  # noqa: S311
    servers = [Server(environment, service, outcome, rng) for _ in range(replicas)]
    outcome.servers.append((0.0, replicas))

    def arrivals() -> Process:
        while True:
            in_burst = seconds / 3 <= environment.now < 2 * seconds / 3
            yield environment.timeout(rng.expovariate(rate * (burst if in_burst else 1)))
            min(servers, key=lambda server: (server.in_flight, rng.random())).arrive()

    def scaling(rule: Autoscaler) -> Process:
        wanted = replicas
        history: deque[int] = deque(maxlen=DOUBLING_S // PERIOD_S)
        while True:
            history.append(wanted)
            yield environment.timeout(PERIOD_S)
            # Servers that are still starting count as idle ones.
            ratio = statistics.fmean(server.queue_time_s() for server in servers) / rule.target_s
            if abs(ratio - 1) <= 0.1:
                continue
            desired = min(math.ceil(len(servers) * ratio), 2 * history[0], rule.most)
            # It waits five minutes before it takes servers away: longer than these runs look at.
            for _ in range(desired - wanted):
                environment.process(start(rule.start_s))
            wanted = max(wanted, desired)

    def start(delay_s: float) -> Process:
        yield environment.timeout(delay_s)
        servers.append(Server(environment, service, outcome, rng))
        outcome.servers.append((environment.now, len(servers)))

    environment.process(arrivals())
    if autoscaler:
        environment.process(scaling(autoscaler))
    environment.run(until=seconds)
    return outcome


def main() -> int:
    """Prints one table; returns 0, or 1 if the servers to measure do not start."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--measure", type=Path, metavar="REPOSITORY", help="compare with real servers of this")
    add("--batch-ms", type=positive(float), help="of a batch beyond its pictures")
    add("--picture-ms", type=positive(float), help="of each picture in a batch")
    add("--rate", type=positive(float), help="pictures a second")
    add("--seconds", type=positive(float), default=60, help="simulated or measured time")
    add("--replicas", type=int, help="servers (default: at 70 %% of their capacity)")
    add("--burst", type=positive(float), default=1.0, help="factor on the rate in the middle third")
    add("--autoscale", type=_bounds, metavar="MIN,MAX", help="let the number of servers follow")
    add("--target-ms", type=positive(float), default=50, help="of the autoscaler")
    add("--start-s", type=positive(float), default=40, help="until a new server is ready")
    options = parser.parse_args()
    if options.measure:
        try:
            print(compared(options.measure, seconds=options.seconds), end="")
        except (BenchmarkError, StartError) as error:
            print(f"benchmarks.scaling: {error}", file=sys.stderr)
            return 1
        return 0
    if None in (options.batch_ms, options.picture_ms, options.rate):
        parser.error("expected --batch-ms, --picture-ms and --rate, or --measure")
    print(simulated(options), end="")
    return 0


def _bounds(text: str) -> tuple[int, int]:
    least, most = map(int, text.split(","))
    if not 1 <= least <= most:
        raise ValueError
    return least, most


def simulated(options: argparse.Namespace) -> str:
    """The table of one simulation."""
    service = Service(batch_s=options.batch_ms / 1000, picture_s=options.picture_ms / 1000)
    replicas = options.replicas or math.ceil(options.rate / service.capacity / 0.7)
    rule = None
    if options.autoscale:
        replicas, most = options.autoscale
        rule = Autoscaler(most=most, target_s=options.target_ms / 1000, start_s=options.start_s)
    load: dict[str, Any] = {"rate": options.rate, "seconds": options.seconds, "burst": options.burst}
    outcome = simulate(service, **load, replicas=replicas, autoscaler=rule)
    waits = {f"p{share}": 1000 * outcome.percentile_s(share / 100) for share in (50, 95, 99)}
    servers = dict.fromkeys(str(count) for _, count in (outcome.servers[0], outcome.servers[-1]))
    refused = outcome.refused / max(len(outcome.waits_s) + outcome.refused, 1)
    row = {"pictures a second": options.rate, "servers": " to ".join(servers)}
    row |= {"load": f"{options.rate / service.capacity / replicas:.0%}"}
    row |= {f"queue {name}, ms": wait for name, wait in waits.items()}
    return records([row | {"refused": f"{refused:.1%}"}])


def compared(repository: Path, *, seconds: float) -> str:
    """The table of real servers beside simulated ones, whose service times are those that Triton counted."""
    batch, queue, (lone, *loads) = scaling_measured.measure(repository, seconds=seconds)
    usual_s = statistics.fmean(lone.latencies_s)
    noise = tuple(latency / usual_s for latency in lone.latencies_s)
    rows = []
    for load in loads:
        batch_s, picture_s = scaling_measured.fit(load.batches)
        service = Service(batch_s=batch_s, picture_s=picture_s, max_batch=batch, max_queue=queue, noise=noise)
        outcome = simulate(service, rate=load.rate, seconds=max(seconds, 600), replicas=2)
        executions = sum(count for count, _ in load.batches.values())
        row: dict[str, object] = {"pictures a second": load.rate}
        row |= {"load": f"{load.rate / service.capacity / 2:.0%}", "failed": load.failed}
        row |= {"batch, ms": 1000 * batch_s, "picture, ms": 1000 * picture_s}
        row |= {"queue measured, ms": 1000 * load.queue_s}
        row |= {"queue simulated, ms": 1000 * (lone.queue_s + statistics.fmean(outcome.waits_s))}
        pictures = sum(size * count for size, (count, _) in load.batches.items())
        rows.append(row | {"batch measured": pictures / executions, "batch simulated": outcome.mean_batch})
    return (
        f"{records(rows)}\nSimulated with what lone requests show: {1000 * lone.queue_s:.3g} ms in "
        f"that queue, and times that vary by {statistics.pstdev(noise):.0%}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
