"""What decoding alone reaches, by real processes on the CPU; the engine beside it by stand-ins."""

import json

import pytest

from benchmarks import preprocess

pytestmark = pytest.mark.wide


def test_processes_decode_at_the_same_time(tmp_path):
    options = ("--device", "cpu", "--batch", "2", "--processes", "1,2", "--seconds", "0.1")
    assert preprocess.main([*options, "--modes", "checked", "--output-dir", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "preprocess.json").read_text(encoding="utf-8"))["rows"]
    assert [row["processes"] for row in rows] == [1, 2]
    assert all(row["decoded"] > 1 and row["p50_ms"] > 0 for row in rows)


def test_a_process_that_cannot_work_is_told_in_one_line(tmp_path, capsys):
    options = ("--device", "cpu", "--processes", "1", "--plan", str(tmp_path / "none.plan"))
    assert preprocess.main([*options, "--output-dir", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks.preprocess: ")


class StandIn:
    """A process, and its rate each time that it is asked for one."""

    def __init__(self, *rates):
        self.rates = list(rates)

    def answer(self, line):
        assert float(line) == 1.5

    def events(self):
        yield {"event": "rate", "rate": self.rates.pop(0), "p50_ms": 1.0}


def test_turns_are_what_both_would_make_one_after_the_other():
    row = preprocess._row([StandIn(100, 40), StandIn(100, 50)], [StandIn(150)], 300.0, 1.5)
    assert row["decoded"] == 200
    assert row["turns"] == pytest.approx(120)
    assert (row["decoded_beside"], row["engine_beside"]) == (90, 150)


def test_without_an_engine_there_is_nothing_to_compare():
    assert preprocess._row([StandIn(100)], [], None, 1.5).keys() & {"turns", "engine"} == set()
