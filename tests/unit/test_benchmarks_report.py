"""What the benchmarks' reports compute."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import perf_analyzer, report, server, serving, tensorrt_engine

pytestmark = pytest.mark.wide


def test_markdown_table_aligns_numbers():
    table = report.table(["name", "ms"], [["a", 1.2345], ["b", None], ["c", 1234.5]])
    assert table == "| name | ms |\n| --- | --: |\n| a | 1.23 |\n| b | - |\n| c | 1234 |\n"


def test_environment_names_machine_versions_and_command():
    described = report.environment()
    assert described["machine"]["cores"] >= 1
    assert described["versions"]["numpy"] == np.__version__
    assert described["command"]
    assert f"numpy {np.__version__}" in report.page({"environment": described}, lambda _: "")


@pytest.mark.parametrize("text", ["", "0", "1,x", "-1"])
def test_numbers_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected numbers from 1"):
        report.numbers(text)


def test_numbers_and_choices():
    assert report.numbers("8,1,8") == [1, 8]
    assert report.choices(("a", "b"))("b,a") == ["b", "a"]
    with pytest.raises(argparse.ArgumentTypeError, match="found c, expected some of a, b"):
        report.choices(("a", "b"))("a,c")


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


HEAD = "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
HEAD += "Server Compute Infer,Server Compute Output,Client Recv"
LATENCIES = ",p50 latency,p90 latency,p95 latency,p99 latency,Avg latency,request/response,response wait"


def test_load_as_perf_analyzer_writes_it(tmp_path):
    """An ensemble's own row sums up its models', each of which has a file beside it."""
    own = "4,11.5,10,100998,1,610,216428,5831,4"
    (tmp_path / "load.csv").write_text(
        f"{HEAD}{LATENCIES}\n{own},289000,759000,850000,851000,323000,14,323826\n"
    )
    for name, figures in (("network", "93000,500,175500,2799"), ("postprocess", "4000,0,11000,1084")):
        (tmp_path / f"centernet_{name}_v1.load.csv").write_text(f"{HEAD}\n4,11.7,0,5,{figures},0\n")
    client = {"throughput": 11.5, "mean_ms": 323, "p50_ms": 289, "p95_ms": 850, "p99_ms": 851}
    steps = {"centernet_network_queue": 93, "centernet_network": 176}
    steps |= {"centernet_postprocess_queue": 4, "centernet_postprocess": 11}
    assert perf_analyzer.read(tmp_path, "centernet") == pytest.approx(client | steps)
    for path in tmp_path.glob("centernet*"):
        path.unlink()
    alone = {"centernet_network_queue": 0.001, "centernet_network": 217.038}
    assert perf_analyzer.read(tmp_path, "centernet_network") == pytest.approx(client | alone)


def test_loads_of_several_clients_are_one(monkeypatch, tmp_path):
    shares = []

    def run(command, concurrency, *_):
        shares.append(concurrency)
        return {"throughput": 10.0 * concurrency, "p50_ms": float(concurrency)}

    monkeypatch.setattr(perf_analyzer, "_run", run)
    found = perf_analyzer.run("m", url="u", input_data=tmp_path, concurrency=4, seconds=1, clients=3)
    assert sorted(shares) == [1, 1, 2]
    assert found == pytest.approx({"throughput": 40, "p50_ms": 1.5}), "weighted by the requests"


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
    (found,) = serving.compare(serving_rows)
    assert found["latency"] == pytest.approx(
        {"server": 28, "without": 20, "ratio": 1.4, "low": 1.2, "high": 1.4}
    )
    assert found["throughput"] == pytest.approx(
        {"server": 57, "without": 60, "ratio": 0.95, "low": 0.95, "high": 0.95}
    )
    assert found["cpu"]["ratio"] == pytest.approx(18 / 16)
    assert (found["concurrency"], found["batch"]) == (8, 4)


def test_server_without_a_process_beside_it(serving_rows):
    (found,) = serving.compare([row for row in serving_rows if "concurrency" in row])
    assert found["latency"] == {"server": 28, "without": None, "ratio": None, "low": None, "high": None}


def test_serving_report_has_every_figure(serving_rows, tmp_path):
    results = {
        "environment": report.environment(),
        "networks": {
            "coins": {"arch": "resdcn_18", "input_size": (512, 512), "variant": "ONNX Runtime, CPU"}
        },
        "changes": ["centernet_network: max_batch_size: 8"],
        "rows": serving_rows,
        "comparison": serving.compare(serving_rows),
    }
    report.write(tmp_path / "coins", "server", results, server.tables)
    text = (tmp_path / "coins/server.md").read_text()
    assert "Medians of 3 repeats" in text
    ratios = "| 28 | 20 | 1.40 (1.20 to 1.40) | 57 | 8 | 60 | 4 | 0.95 (0.95 to 0.95) | 1.12 (1.12 to 1.12) |"
    assert f"| coins | jpeg | none {ratios}\n" in text
    assert "- Changed: `centernet_network: max_batch_size: 8`\n" in text
    assert "| without server |  | 4 | 45 | 45 | 45 | 45 | 90 | 16 | 4 | - | - | - | - | - |" in text
    assert "| 8 | none | 4 | 105 | 105 | 105 | 105 | 85.5 | 18 | 4.2 | 1 | 0.1 | 2 | 7.7 | 0.25 |" in text


def test_runs_are_summed_up(serving_rows, tmp_path, monkeypatch):
    results = {"comparison": serving.compare(serving_rows), "rows": serving_rows}
    (tmp_path / "coins-cpu").mkdir()
    (tmp_path / "coins-cpu/server.json").write_text(json.dumps(results))
    for row in serving_rows:
        row["repeat"] = row.get("repeat", 1) - 1  # as `benchmarks.server` counts them
    (row,) = serving.summary({"coins-cpu": results})
    assert row["run"] == "coins-cpu"
    assert (row["in_flight"], row["throughput"], row["p50_ms"]) == (8, 57, 28)
    assert row["share"] == pytest.approx(0.95)
    assert (row["batch"], row["network_queue_ms"]) == (4.2, 2)
    monkeypatch.setattr("sys.argv", ["serving", str(tmp_path)])
    assert serving.main() == 0
    assert "| coins-cpu | jpeg | none | 8 | 57 | 0.95 | 28 |" in (tmp_path / "serving.md").read_text()


def test_results_that_are_kept_have_tables(capsys):
    files = sorted((Path(__file__).parents[2] / "docs/gpu").glob("*/*.json"))
    assert len(files) >= 8
    assert report.main(list(map(str, files))) == 0
    text = capsys.readouterr().out
    assert "| dcnv2 | 197 | 1 | 689 | 1 | 2328 | 1 | 681 | 1 |" in text
    assert report.main([__file__]) == 1


def test_layer_names_of_dcn_nodes():
    node = "network.dla_up.proj_1.conv/DeformConv"
    assert tensorrt_engine.mentions(node, node)
    assert tensorrt_engine.mentions(f"Reformatting CopyNode for Input Tensor 0 to {node}", node)
    assert not tensorrt_engine.mentions(f"{node}_2", node)
    assert tensorrt_engine.mentions(f"{node}_2 + {node}", node)
