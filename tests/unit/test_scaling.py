import subprocess
import sys

import pytest

from benchmarks.scaling import Autoscaler, Service, simulate
from benchmarks.scaling_measured import fit

ONE_BY_ONE = Service(batch_s=0.0, picture_s=0.01, max_batch=1)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_one_server_waits_as_queueing_theory_says(load):
    """M/D/1: mean wait = load * service time / (2 (1 - load)), by Pollaczek and Khinchine."""
    outcome = simulate(ONE_BY_ONE, rate=100 * load, seconds=1500, replicas=1)
    mean = sum(outcome.waits_s) / len(outcome.waits_s)
    assert mean == pytest.approx(load * 0.01 / 2 / (1 - load), rel=0.1)
    assert outcome.refused == 0
    assert outcome.mean_batch == 1


def test_noise_counts_as_queueing_theory_says():
    """M/G/1: the mean wait grows with the second moment of the service time."""
    service = Service(batch_s=0.0, picture_s=0.01, max_batch=1, noise=(0.5, 0.5, 0.5, 2.5))
    outcome = simulate(service, rate=50, seconds=1500, replicas=1)
    mean = sum(outcome.waits_s) / len(outcome.waits_s)
    assert mean == pytest.approx(50 * 0.01**2 * 1.75 / 2 / 0.5, rel=0.1)


def test_balanced_servers_wait_less_than_each_alone():
    alone = simulate(ONE_BY_ONE, rate=80, seconds=300, replicas=1)
    together = simulate(ONE_BY_ONE, rate=320, seconds=300, replicas=4)
    assert together.percentile_s(0.5) < alone.percentile_s(0.5) / 2


def test_what_is_beyond_the_capacity_is_refused():
    service = Service(batch_s=0.01, picture_s=0.01, max_batch=4, max_queue=8)
    assert service.capacity == pytest.approx(80)
    outcome = simulate(service, rate=160, seconds=200, replicas=1)
    total = outcome.refused + len(outcome.waits_s)
    assert outcome.refused / total == pytest.approx(0.5, abs=0.02)
    assert outcome.mean_batch == pytest.approx(4, abs=0.1)
    # Eight wait: two batches of 50 ms, and what is left of the one that runs.
    assert max(outcome.waits_s) <= 0.15 + 1e-9


def test_autoscaler_doubles_at_most_and_ends_the_queue():
    service = Service(batch_s=0.005, picture_s=0.01, max_batch=8, max_queue=512)
    rule = Autoscaler(most=6, target_s=0.05, start_s=20)
    without = simulate(service, rate=60, seconds=900, replicas=1, burst=6)
    outcome = simulate(service, rate=60, seconds=900, replicas=1, burst=6, autoscaler=rule)
    times, counts = zip(*outcome.servers, strict=True)
    assert counts == (1, 2, 3, 4, 5, 6)[: len(counts)]
    assert counts[-1] > 3
    assert times[1] > 300 + rule.start_s  # Nobody is needed before the burst.
    for number, ready in enumerate(times[1:], 1):
        # Decided `start_s` before; at most twice as many as half a minute earlier.
        decided = [count for time, count in outcome.servers if time <= ready - 30]
        assert number + 1 <= 2 * max(decided)
    assert 0 <= outcome.refused < without.refused


def test_same_seed_same_outcome():
    first, second = (simulate(ONE_BY_ONE, rate=50, seconds=20, replicas=2, seed=3) for _ in range(2))
    assert first == second
    assert simulate(ONE_BY_ONE, rate=50, seconds=20, replicas=2, seed=4) != first


def test_service_times_are_fitted_by_their_weight():
    batches = {size: (10, 10 * (0.004 + 0.002 * size)) for size in (1, 2, 4)}
    assert fit(batches) == pytest.approx((0.004, 0.002))
    assert fit({2: (5, 0.05)}) == pytest.approx((0, 0.005))
    # More time for fewer pictures: noise, which must not become a negative time.
    assert min(fit({1: (9, 0.09), 4: (1, 0.005)})) >= 0
    assert min(fit({1: (9, 0.009), 4: (9, 0.9)})) >= 0


@pytest.mark.parametrize(
    "arguments",
    [[], ["--rate", "0"], ["--rate", "1", "--batch-ms", "1", "--picture-ms", "1", "--autoscale", "3,2"]],
)
def test_misuse(arguments):
    command = [sys.executable, "-m", "benchmarks.scaling", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_table():
    command = [sys.executable, "-m", "benchmarks.scaling", "--batch-ms", "5", "--picture-ms", "1"]
    command += ["--rate", "1000", "--seconds", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    head, _, row = done.stdout.splitlines()
    assert head.count("|") == row.count("|") == 8
    assert "| 2 | 58% |" in row
