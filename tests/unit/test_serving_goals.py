"""The goals' table from reports of `benchmarks.server`."""

import json
import sys

import pytest

from benchmarks import serving_goals


def comparison(network, request, memory, *, p50, share, throughput=100.0):
    latency = {"server": p50, "without": 1.0, "ratio": p50, "low": p50, "high": p50}
    figures = {
        "server": throughput,
        "without": throughput / share,
        "ratio": share,
        "low": share,
        "high": share,
    }
    one = {"network": network, "request": request, "shared_memory": memory, "concurrency": 64, "batch": 32}
    return one | {"latency": latency, "throughput": figures, "cpu": latency}


@pytest.fixture
def goals(tmp_path, monkeypatch, capsys):
    def run(reports):
        for name, (changes, compared) in reports.items():
            (tmp_path / name).mkdir()
            report = {"changes": changes, "comparison": compared, "rows": []}
            (tmp_path / name / "server.json").write_text(json.dumps(report))
        monkeypatch.setattr(sys, "argv", ["serving_goals", str(tmp_path), str(tmp_path / "val.json")])
        assert serving_goals.main() == 0
        found = json.loads((tmp_path / "serving.json").read_text())["goals"]
        assert capsys.readouterr().out.startswith("# Serving")
        return {goal["goal"]: goal["found"] for goal in found}

    return run


def test_best_of_one_gpus_unchanged_runs(goals):
    found = goals(
        {
            "dla_34-jpeg": ([], [comparison("dla_34", "jpeg", "system", p50=5, share=0.8)]),
            "dla_34-wire": ([], [comparison("dla_34", "jpeg", "none", p50=4, share=0.85)]),
            "dla_34-jpeg-x": (["a: b"], [comparison("dla_34", "jpeg", "system", p50=1, share=0.99)]),
            "dla_34-jpeg-base-mps": ([], [comparison("dla_34", "jpeg", "system", p50=1, share=0.99)]),
        }
    )
    assert found["dla_34, jpeg: served / engine"] == 0.85
    assert found["dla_34, lone jpeg: p50, ms"] == 5, "by system shared memory"
    assert found["resdcn_18, jpeg: served / engine"] is None


def test_cpu_and_two_gpus(goals):
    found = goals(
        {
            "coins-cpu": ([], [comparison("resdcn_18", "jpeg", "none", p50=1.1, share=0.9)]),
            "dla_34-gpus-1": (
                [],
                [comparison("dla_34", "frames-8", "system", p50=1, share=1, throughput=300)],
            ),
            "dla_34-gpus-2": (
                [],
                [comparison("dla_34", "frames-8", "system", p50=1, share=1, throughput=570)],
            ),
        }
    )
    assert found["CPU, narrow network, jpeg: throughput / one process"] == 0.9
    assert found["CPU, narrow network, jpeg: latency / one process"] == 1.1
    assert found["dla_34, frames-8: two GPUs / one"] == pytest.approx(1.9)
    assert found["resdcn_18, jpeg: served / engine"] is None
