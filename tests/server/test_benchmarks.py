"""`benchmarks.server` in its short form: real server, real perf_analyzer, a complete report."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from centernet_image.description import Description
from google.protobuf import text_format
from servers import make_repository
from tritonclient.grpc import model_config_pb2

from benchmarks import networks, perf_analyzer
from benchmarks import server as benchmark
from clients import CenterNetClient, SourceError, local

pytestmark = [pytest.mark.server, pytest.mark.wide]
SHORT = ["--concurrency", "1,4", "--batch", "1,2", "--seconds", "0.3", "--repeats", "1"]


@pytest.fixture(autouse=True, scope="module")
def _perf_analyzer():
    done = subprocess.run([perf_analyzer.EXECUTABLE, "--version"], capture_output=True, text=True)
    if "whose libraries cannot run" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def report_dir(small_onnx, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    repository = make_repository(folder, small_onnx)
    options = ["--model-repository", str(repository), "--output-dir", str(folder / "report"), *SHORT]
    options += ["--requests", "jpeg,frames-8", "--clients", "2"]
    assert benchmark.main(options) == 0
    return folder / "report"


def test_every_load_is_reported(report_dir):
    results = json.loads((report_dir / "server.json").read_text())
    assert results["networks"]["resdcn_18"]["input_size"] == [256, 384]
    served = [row for row in results["rows"] if "concurrency" in row]
    sweep = [row for row in served if row["load"] == "sweep"]
    assert {(row["request"], row["shared_memory"], row["concurrency"]) for row in sweep} == {
        (request, memory, concurrency)
        for request in ("jpeg", "frames-8")
        for memory in ("none", "system")
        for concurrency in (1, 4)
    }
    for row in served:
        assert row["throughput"] > 0
        assert row["p50_ms"] > 0
        assert row["cpu_ms"] > 0
        batch = 8 if row["request"] == "frames-8" else 1
        assert batch <= row["batch"] <= batch * row["concurrency"]
        parts = row["breakdown_ms"]
        # The rest is the client's own measurement less the server's: windows this short say nothing.
        assert all(parts[part] >= 0 for part in parts if part != "rest")
        steps = ["network", "postprocess", *(["preprocess"] if row["request"] == "jpeg" else [])]
        assert set(parts) == {"rest", *steps, *(f"{step}_queue" for step in steps)}
        assert all(parts[step] > 0 for step in steps)


def test_one_process_is_measured_beside(report_dir):
    results = json.loads((report_dir / "server.json").read_text())
    assert results["networks"]["resdcn_18"]["variant"] == "ONNX Runtime, CPU"
    process = [row for row in results["rows"] if "concurrency" not in row]
    assert {(row["request"], row["load"]) for row in process} == {
        (request, load) for request in ("jpeg", "frames-8") for load in ("sweep", "alone", "saturation")
    }
    assert len(results["comparison"]) == 4
    for compared in results["comparison"]:
        for name in ("latency", "throughput", "cpu"):
            assert compared[name]["ratio"] > 0
            # With one repeat, there is one ratio.
            assert compared[name]["low"] == pytest.approx(compared[name]["ratio"])
            assert compared[name]["high"] == pytest.approx(compared[name]["ratio"])


def test_tables(report_dir):
    text = (report_dir / "server.md").read_text()
    for expected in ("perf_analyzer", "numpy", "## resdcn_18, jpeg", "## resdcn_18, frames-8"):
        assert expected in text


def test_changed_configurations(small_onnx, tmp_path):
    """Lists are replaced, messages merged, the original untouched."""
    original = make_repository(tmp_path, small_onnx)
    before = (original / "centernet_network/config.pbtxt").read_text()
    changes = [
        "centernet_network: instance_group { kind: KIND_GPU count: 3 }",
        "centernet_network: optimization { cuda { graphs: true } }",
        "centernet_network: dynamic_batching { max_queue_delay_microseconds: 300 }",
    ]
    changed = networks.changed(original, changes, tmp_path / "changed") / "centernet_network/config.pbtxt"
    config = text_format.Parse(changed.read_text(), model_config_pb2.ModelConfig())
    assert [group.count for group in config.instance_group] == [3]
    assert config.optimization.cuda.graphs
    assert config.dynamic_batching.max_queue_delay_microseconds == 300
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert (original / "centernet_network/config.pbtxt").read_text() == before


def test_one_process_detects_what_the_server_does(server):
    picture = benchmark.example_picture()
    detector = local.of_file(server.repository / "centernet_network" / "1" / "model.onnx")
    found, refused = detector.detect_each([picture, b"no picture"])
    assert isinstance(refused, SourceError)
    with CenterNetClient(server.grpc_url) as client:
        expected = client.detect(picture)
    assert len(found) > 0
    assert found.labels == expected.labels
    for name in ("xyxy", "scores", "class_ids"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-3)


def test_running_server(server, tmp_path):
    options = ["--url", server.grpc_url, "--model-repository", str(server.repository), *SHORT]
    options += ["--requests", "network-32", "--shared-memory", "none", "--output-dir", str(tmp_path)]
    assert benchmark.main(options) == 0
    assert server.alive
    assert (tmp_path / "server.md").exists()


def test_no_network_in_the_repository(small_onnx, tmp_path, capsys):
    repository = make_repository(tmp_path, small_onnx)
    (repository / "centernet_network" / "1" / "model.json").unlink()
    assert benchmark.main(["--model-repository", str(repository)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "make the network first" in message


def test_server_that_does_not_start(small_onnx, tmp_path, capsys):
    repository = make_repository(tmp_path, small_onnx)
    shutil.rmtree(repository / "centernet_postprocess")
    assert benchmark.main(["--model-repository", str(repository)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "the server ended" in message


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--networks", "resdcn_18,none", "found 'none', expected a checkpoint or one of"),
        ("--repeats", "0", "invalid positive int value: '0'"),
        ("--seconds", "-1", "invalid positive float value: '-1'"),
        ("--set", "centernet_network: graphs", "expected MODEL:TEXT"),
        ("--set", "none: max_batch_size: 1", "found 'none', expected a model of the repository"),
    ],
)
def test_misuse(option, value, expected, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main([option, value])
    assert expected in capsys.readouterr().err


def test_network_of_a_checkpoint_is_exported_once(tmp_path):
    checkpoint = benchmark.NETWORKS[0]
    onnx = networks.export(checkpoint, tmp_path)
    written = onnx.stat().st_mtime_ns
    assert networks.export(checkpoint, tmp_path).stat().st_mtime_ns == written
    repository = networks.repository(onnx, tmp_path / "repository")
    description = Description.read(repository / "centernet_network/1/model.json")
    assert description.classes == ("coin",)
    assert (repository / "centernet_network/1/model.onnx").read_bytes() == onnx.read_bytes()
