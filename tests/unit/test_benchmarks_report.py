"""What the benchmarks' reports compute."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import perf_analyzer, report, serving_report, tensorrt_engine
from benchmarks.triton_server import Statistics, breakdown

pytestmark = pytest.mark.wide


def test_markdown_table_aligns_numbers():
    table = report.markdown_table(["name", "ms"], [["a", 1.2345], ["b", None], ["c", 1234.5]])
    assert table == "| name | ms |\n| --- | --: |\n| a | 1.23 |\n| b | - |\n| c | 1234 |\n"


def test_environment_names_machine_versions_and_command():
    described = report.environment()
    assert described["machine"]["cores"] >= 1
    assert described["versions"]["numpy"] == np.__version__
    assert described["command"]
    assert f"numpy {np.__version__}" in report.environment_lines(described)


@pytest.mark.parametrize("text", ["", "0", "1,x", "-1"])
def test_numbers_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected numbers from 1"):
        report.numbers(text)


def test_numbers_and_choices():
    assert report.numbers("8,1,8") == [1, 8]
    assert report.choices(("a", "b"))("b,a") == ["b", "a"]
    with pytest.raises(argparse.ArgumentTypeError, match="found c, expected some of a, b"):
        report.choices(("a", "b"))("a,c")


SUMMARY = """
Request concurrency: 4
  Client:
    Request count: 128
    Avg latency: 223495 usec (standard deviation 85809 usec)
  Server:
    Inference count: 128
    Execution count: 128
    Successful request count: 128
    Avg request latency: 220534 usec (overhead 0 usec + queue 70512 usec + compute 150334 usec)

  Composing models:
  centernet_network, version: 1
      Inference count: 128
      Execution count: 60
      Successful request count: 128
      Avg request latency: 165252 usec (overhead 8 usec + queue 52629 usec + compute input 332 usec)
"""


def test_server_without_shared_memory(monkeypatch, tmp_path):
    """As perf_analyzer passes on what Triton 26.04 answers."""
    script = tmp_path / "perf_analyzer"
    said = (
        "error: Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
    )
    script.write_text(f'#!/bin/sh\necho "Failed to init manager inputs"\necho "{said}" >&2\nexit 99\n')
    script.chmod(0o755)
    monkeypatch.setattr(perf_analyzer, "EXECUTABLE", script)
    options = {"url": "localhost:1", "input_data": tmp_path, "concurrency": 1, "seconds": 1}
    with pytest.raises(
        report.BenchmarkError, match="localhost:1 does not take shared memory: start the server"
    ):
        perf_analyzer.run("centernet", shared_memory="system", **options)


def test_time_inside_the_server_as_perf_analyzer_prints_it():
    assert perf_analyzer.server_mean_ms(SUMMARY) == 220.534
    with pytest.raises(report.BenchmarkError, match="nothing of the server"):
        perf_analyzer.server_mean_ms(SUMMARY.replace("  Server:", "  Client:"))


def test_statistics_are_differences_per_request():
    counters = {"inferences": 10, "executions": 5, "requests": 10, "success": 70_000_000, "queue": 10_000_000}
    counters |= {"compute_input": 0, "compute_infer": 50_000_000, "compute_output": 10_000_000}
    before = Statistics({"centernet_network": counters, "idle": counters})
    after = Statistics({"centernet_network": {k: 3 * v for k, v in counters.items()}, "idle": counters})
    (usage,) = after.since(before).values()
    assert usage.requests == 20
    assert usage.batch == 2
    assert usage.total_ms == pytest.approx(7)
    assert usage.parts_ms == {"queue": 1, "compute_input": 0, "compute_infer": 5, "compute_output": 1}
    ensemble = Statistics({"centernet_frames": counters | {"success": 90_000_000}, **before.counters})
    parts = breakdown("centernet_frames", ensemble.since(Statistics()), transport_ms=0.5)
    assert parts == pytest.approx({"transport": 0.5, "handover": 3, "network_queue": 1, "network": 5})


@pytest.fixture
def serving_rows():
    """A sweep, and three repeats on a machine of changing speed."""
    rows = []

    def row(p50, throughput, cpu, *, slowness, **further):
        times = {f"{name}_ms": p50 * slowness for name in ("mean", "p50", "p95", "p99")}
        figures = times | {"throughput": throughput / slowness, "cpu_ms": cpu}
        rows.append({"network": "coins", "request": "jpeg"} | figures | further)

    parts = {"transport": 1.0, "handover": 0.1, "network_queue": 2.0, "network": 7.7}
    for repeat, slowness in enumerate((1.0, 1.0, 10.0, 2.0)):
        alone, saturation = (
            {"load": load, "repeat": repeat, "slowness": slowness}
            if repeat
            else {"load": "sweep", "slowness": 1}
            for load in ("alone", "saturation")
        )
        served = {"shared_memory": "none", "breakdown_ms": parts | {"postprocess": 0.1 + repeat / 10}}
        row(10, 100, 20, batch=1, **alone)
        row(11 + repeat, 90, 20, concurrency=1, batch=1.0, **served, **alone)
        row(30, 120, 16, batch=4, **saturation)
        row(70, 114, 18, concurrency=8, batch=4.2, **served, **saturation)
    return rows


def test_ratios_lie_between_those_of_the_repeats(serving_rows):
    (found,) = serving_report.compare(serving_rows)
    assert found["latency"] == pytest.approx(
        {"server": 28, "without": 20, "ratio": 1.4, "low": 1.2, "high": 1.4}
    )
    assert found["throughput"] == pytest.approx(
        {"server": 57, "without": 60, "ratio": 0.95, "low": 0.95, "high": 0.95}
    )
    assert found["cpu"]["ratio"] == pytest.approx(18 / 16)
    assert (found["concurrency"], found["batch"]) == (8, 4)


def test_server_without_a_process_beside_it(serving_rows):
    (found,) = serving_report.compare([row for row in serving_rows if "concurrency" in row])
    assert found["latency"] == {"server": 28, "without": None, "ratio": None, "low": None, "high": None}


def test_serving_report_has_every_figure(serving_rows, tmp_path):
    results = {
        "environment": report.environment(),
        "networks": {
            "coins": {"arch": "resdcn_18", "input_size": (512, 512), "variant": "ONNX Runtime, CPU"}
        },
        "changes": ["centernet_network: max_batch_size: 8"],
        "minutes": 7.25,
        "rows": serving_rows,
    }
    serving_report.write(tmp_path, results)
    text = (tmp_path / "server.md").read_text()
    assert "Medians of 3 repeats" in text
    ratios = "| 28 | 20 | 1.40 (1.20 to 1.40) | 57 | 8 | 60 | 4 | 0.95 (0.95 to 0.95) | 1.12 (1.12 to 1.12) |"
    assert f"| coins | jpeg | none {ratios}\n" in text
    assert "- Changed: `centernet_network: max_batch_size: 8`\n" in text
    assert "| without server |  | 90 | 45 | 45 | 45 | 16 | 4 | 4 |" in text
    assert "| 8 | none | 85.5 | 105 | 105 | 105 | 18 | 4.2 | 4 |" in text
    assert "| 8 | none | 1 | 0.1 | 2 | 7.7 | 0.25 |" in text
    assert json.loads((tmp_path / "server.json").read_text())["comparison"] == serving_report.compare(
        serving_rows
    )


def test_layer_names_of_dcn_nodes():
    node = "network.dla_up.proj_1.conv/DeformConv"
    assert tensorrt_engine.mentions(node, node)
    assert tensorrt_engine.mentions(f"Reformatting CopyNode for Input Tensor 0 to {node}", node)
    assert not tensorrt_engine.mentions(f"{node}_2", node)
    assert tensorrt_engine.mentions(f"{node}_2 + {node}", node)
