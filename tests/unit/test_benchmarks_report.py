"""What the benchmarks' reports compute."""

import argparse
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from benchmarks import report, serving_report, tensorrt_engine
from benchmarks.triton_server import Statistics, breakdown


def test_markdown_table_aligns_numbers():
    table = report.markdown_table(["name", "ms"], [["a", 1.2345], ["b", None], ["c", 1234.5]])
    assert table == "| name | ms |\n| --- | --: |\n| a | 1.23 |\n| b | - |\n| c | 1234 |\n"


def test_environment_names_machine_versions_and_command():
    described = report.environment()
    assert described["machine"]["cores"] >= 1
    assert described["versions"]["numpy"] == np.__version__
    assert described["command"]
    assert f"numpy {np.__version__}" in report.environment_lines(described)


def test_line_plot_is_reproducible_svg(tmp_path):
    for name in ("a.svg", "b.svg"):
        series = {"server": [(1.0, 2.0), (3.0, 4.0)], "one process": [(2.0, 3.0)]}
        report.line_plot(tmp_path / name, series, title="t", x_label="x", y_label="y", log_y=True)
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "one process" in (tmp_path / "a.svg").read_text()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("text", ["", "0", "1,x", "-1"])
def test_numbers_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected numbers from 1"):
        report.numbers(text)


def test_numbers_and_choices():
    assert report.numbers("8,1,8") == [1, 8]
    assert report.choices(("a", "b"))("b,a") == ["b", "a"]
    with pytest.raises(argparse.ArgumentTypeError, match="found c, expected some of a, b"):
        report.choices(("a", "b"))("a,c")


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
    parts = breakdown("centernet_frames", ensemble.since(Statistics()), client_ms=9.5)
    assert parts == pytest.approx({"transport": 0.5, "network_queue": 1, "network": 5, "handover": 3})


@pytest.fixture
def serving_rows():
    """Three repeats of a server at two concurrencies and of one process, on a machine of changing speed."""
    rows = []
    for repeat, slowness in enumerate((1.0, 10.0, 2.0)):

        def row(p50, throughput, cpu, slowness=slowness, repeat=repeat, **further):
            times = {f"{name}_ms": p50 * slowness for name in ("mean", "p50", "p95", "p99")}
            figures = times | {"throughput": throughput / slowness, "cpu_ms": cpu}
            rows.append({"repeat": repeat, "model": "centernet"} | figures | further)

        row(10, 100, 20, batch=1)
        row(30, 120, 16, batch=4)
        parts = {
            "transport": 1.0,
            "handover": 0.1,
            "network_queue": 2.0,
            "network": 7.7,
            "postprocess": 0.2,
        }
        served = {"shared_memory": "none", "breakdown_ms": parts}
        row(11, 90, 20, concurrency=1, batch=1.0, **served)
        row(70, 114, 18, concurrency=8, batch=4.2, **served)
    return rows


def test_comparison_takes_ratios_within_each_repeat(serving_rows):
    (found,) = serving_report.compare(serving_rows)
    assert found["latency_ratio"] == pytest.approx(1.1)
    assert found["throughput_ratio"] == pytest.approx(0.95)
    assert found["cpu_ratio"] == pytest.approx(18 / 16)
    assert found["postprocess_ms"] == 0.2
    assert found["p50_ms"] == 22


def test_serving_report_has_every_figure(serving_rows, tmp_path):
    results = {
        "environment": report.environment(),
        "network": {"arch": "resdcn_18", "input_size": (512, 512), "variant": "ONNX Runtime, CPU"},
        "picture": {"bytes": 200_000, "size": (960, 1280)},
        "rows": serving_rows,
    }
    serving_report.write(tmp_path, results)
    text = (tmp_path / "server.md").read_text()
    assert "| centernet | none | 22 | 20 | 1.1 | 57 | 60 | 0.95 | 1.12 | 0.2 |" in text
    assert "| one process |  | 60 | 60 | 60 | 60 | 16 | 4 |" in text
    assert "| 8 | none | 57 | 140 | 140 | 140 | 18 | 4.2 |" in text
    assert "| 8 | none | 1 | 0.1 | 2 | 7.7 | 0.2 |" in text
    assert json.loads((tmp_path / "server.json").read_text())["comparison"] == serving_report.compare(
        serving_rows
    )
    assert (tmp_path / "server_centernet.svg").exists()


def test_layer_names_of_dcn_nodes():
    node = "network.dla_up.proj_1.conv/DeformConv"
    assert tensorrt_engine.mentions(node, node)
    assert tensorrt_engine.mentions(f"Reformatting CopyNode for Input Tensor 0 to {node}", node)
    assert not tensorrt_engine.mentions(f"{node}_2", node)
    assert tensorrt_engine.mentions(f"{node}_2 + {node}", node)
