"""The benchmarks without server and GPU: what their reports compute, and whole networks on the CPU."""

import argparse
import json
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from benchmarks import engine, report, serving_report, tensorrt_engine, weights
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
    assert parts == pytest.approx({"transport": 0.5, "network_queue": 1, "network": 6, "scheduling": 2})


def test_comparison_takes_ratios_within_each_repeat():
    rows = []
    for repeat, slowness in enumerate((1.0, 10.0, 2.0)):
        own = {"repeat": repeat, "model": "centernet"}
        rows.append(own | {"batch": 1, "p50_ms": 10 * slowness, "throughput": 100 / slowness})
        rows.append(own | {"batch": 4, "p50_ms": 30 * slowness, "throughput": 120 / slowness})
        for concurrency, p50, throughput in ((1, 11, 90), (8, 70, 114)):
            rows.append(
                own
                | {"concurrency": concurrency, "shared_memory": "none", "breakdown_ms": {"postprocess": 0.2}}
                | {"p50_ms": p50 * slowness, "throughput": throughput / slowness}
            )
    (found,) = serving_report.compare(rows)
    assert found["latency_ratio"] == pytest.approx(1.1)
    assert found["throughput_ratio"] == pytest.approx(0.95)
    assert found["postprocess_ms"] == 0.2
    assert found["p50_ms"] == 22


def test_layer_names_of_dcn_nodes():
    node = "network.dla_up.proj_1.conv/DeformConv"
    assert tensorrt_engine.mentions(node, node)
    assert tensorrt_engine.mentions(f"Reformatting CopyNode for Input Tensor 0 to {node}", node)
    assert not tensorrt_engine.mentions(f"{node}_2", node)
    assert tensorrt_engine.mentions(f"{node}_2 + {node}", node)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Other tests run beside these: threads that wait by spinning would slow them all down."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    """Checkpoint and ONNX file of the smallest architecture, by the benchmark's own means."""
    folder = tmp_path_factory.mktemp("models")
    options = [*SMALL, "--contenders", "eager,onnxruntime,plugin", "--work-dir", str(folder)]
    assert engine.main([*options, "--output-dir", str(folder / "report")]) == 0
    return folder


SMALL = [
    "--device",
    "cpu",
    "--models",
    "resdcn_18",
    "--input-size",
    "64x64",
    "--batch",
    "1,3",
    "--seconds",
    "0.05",
]


def test_engine_report_is_complete(work_dir):
    results = json.loads((work_dir / "report" / "engine.json").read_text())
    assert results["environment"]["versions"]["torch"]
    rows = {row["contender"]: row for row in results["rows"]}
    for name in ("eager", "onnxruntime"):
        assert rows[name]["status"] == "done", rows[name]["reason"]
        assert set(rows[name]["median_ms"]) == {"1", "3"}
        assert all(ms > 0 for ms in rows[name]["median_ms"].values())
        assert rows[name]["check"]["compared"] > 50
        assert rows[name]["check"]["unmatched"] < 0.05
    text = (work_dir / "report" / "engine.md").read_text()
    assert "| ONNX Runtime, FP32 |" in text
    assert "batch 3, ms" in text


def test_engine_says_why_a_contender_is_skipped(work_dir):
    results = json.loads((work_dir / "report" / "engine.json").read_text())
    (row,) = (row for row in results["rows"] if row["contender"] == "plugin")
    if row["status"] == "done":
        pytest.skip("this machine has a GPU")
    assert row["status"] == "skipped"
    assert "GPU" in row["reason"]
    assert row["reason"] in (work_dir / "report" / "engine.md").read_text()


def test_engine_does_not_time_wrong_outputs(work_dir, tmp_path, capsys):
    shutil.copy(work_dir / "resdcn_18.onnx", tmp_path)
    weights.make_checkpoint("resdcn_18", tmp_path / "resdcn_18.pth", input_size=(64, 64), seed=1)
    options = [*SMALL, "--contenders", "eager", "--work-dir", str(tmp_path), "--output-dir", str(tmp_path)]
    assert engine.main(options) == 0
    (row,) = json.loads((tmp_path / "engine.json").read_text())["rows"]
    assert row["status"] == "wrong"
    assert row["check"]["unmatched"] > 0.5
    assert not row["median_ms"]
    assert "outputs differ" in capsys.readouterr().err


def test_engine_ends_what_hangs(work_dir, tmp_path):
    options = [*SMALL, "--contenders", "eager", "--work-dir", str(work_dir), "--output-dir", str(tmp_path)]
    assert engine.main([*options, "--timeout-s", "0.2"]) == 0
    (row,) = json.loads((tmp_path / "engine.json").read_text())["rows"]
    assert row["status"] == "failed"
    assert "hung" in row["reason"]


def test_engine_refuses_another_frame_size(work_dir, tmp_path, capsys):
    options = [*SMALL, "--input-size", "32x64", "--work-dir", str(work_dir), "--output-dir", str(tmp_path)]
    assert engine.main(options) == 1
    assert "takes frames of 64x64, found --input-size 32x64" in capsys.readouterr().err
