"""How a soak judges; tests/server runs one."""

import numpy as np
import pytest

from benchmarks import soak, soak_pictures
from benchmarks.memory import Sample, growth_of_last_third
from benchmarks.soak_load import ANSWERED, FULL, UNEXPLAINED, WRONG, Outcomes


def result(*, mib=lambda time_s: 500.0, waiting=10, places=50, **counts):
    """A soak of 300 s, in which each request ends while `waiting` others are ahead."""
    outcomes = Outcomes()
    outcomes.counts.update({ANSWERED: 1000, FULL: 9000} | counts)
    outcomes.answered = [(float(i), i + waiting + 0.5) for i in range(1000)]
    samples = [Sample(float(i), {"server": mib(i), "centernet_network_0_0": 100.0}) for i in range(300)]
    return soak.Result(1.0, places, outcomes, samples)


def test_a_server_that_suffers_nothing():
    assert result().failures() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mib": lambda i: 500 + 0.1 * i}, "memory grew by 1.6% in the last third, expected 1%"),
        ({"waiting": 60}, "p99 waits for 60 answers, expected at most 50"),
        ({WRONG: 1}, "1 requests answered wrongly"),
        ({UNEXPLAINED: 2}, "2 requests without an answer or a reason"),
        ({FULL: 0}, "no request was refused: this was no load"),
        ({ANSWERED: 0}, "no request was answered"),
    ],
)
def test_what_a_server_suffers(changes, said):
    (failure,) = result(**changes).failures()
    assert failure.startswith(said)


def test_memory_that_rose_before_and_varies_is_flat():
    random = np.random.default_rng(0)
    assert result(mib=lambda i: min(500, 5 * i) + random.normal(0, 5)).failures() == []


def test_growth_is_of_the_peaks():
    """A heap that is emptied now and then does not grow."""
    mib = [900] * 40 + [80, 20, 100, 100] * 10 + [110, 20, 110, 10] * 10
    samples = [Sample(float(i), {"server": value}) for i, value in enumerate(mib)]
    assert growth_of_last_third(samples) == pytest.approx(0.1)


ROWS = np.array([[0, 0, 10, 10, 0.9, 0], [20, 20, 30, 30, 0.8, 1]], float)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows, True),
        (lambda rows: rows[::-1], True),
        (lambda rows: np.add(rows, 0.001), False),  # the class
        (lambda rows: np.add(rows, [0.5, 0, 0, 0, 0.005, 0]), True),
        (lambda rows: np.add(rows, [2, 0, 0, 0, 0, 0]), False),
        (lambda rows: np.add(rows, [0, 0, 0, 0, 0.02, 0]), False),
        (lambda rows: rows[:1], False),
        (lambda rows: rows[[0, 0]], False),
        (lambda rows: rows[:0], False),
    ],
)
def test_same(change, expected):
    assert soak_pictures.same(change(ROWS), ROWS) is expected


def test_same_of_nothing():
    assert soak_pictures.same(ROWS[:0], ROWS[:0])


def test_threshold_is_where_no_score_is():
    scores = np.r_[0.9, 0.88, 0.3, np.linspace(0.1, 0, 97)]
    assert soak_pictures.threshold_between(scores) == pytest.approx(0.59)
