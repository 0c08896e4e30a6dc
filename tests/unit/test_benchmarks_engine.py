"""`benchmarks.engine` on the CPU: real networks, small ones."""

import json
import shutil

import pytest

from benchmarks import engine, weights

pytestmark = pytest.mark.wide

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


def test_engine_report_is_complete(work_dir):
    results = json.loads((work_dir / "report" / "engine.json").read_text())
    assert results["environment"]["versions"]["torch"]
    rows = {row["contender"]: row for row in results["rows"]}
    for name in ("eager", "onnxruntime"):
        assert rows[name]["status"] == "done", rows[name]["reason"]
        assert set(rows[name]["median_ms"]) == {"1", "3"}
        assert all(ms > 0 for ms in rows[name]["median_ms"].values())
        for check in (rows[name]["check"][batch] for batch in ("1", "3")):
            assert check["compared"] > 50
            assert check["unmatched"] < 0.05
    text = (work_dir / "report" / "engine.md").read_text()
    assert "| onnxruntime |" in text
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
    weights.make_checkpoint("resdcn_18", tmp_path / "resdcn_18.pth", input_size=(64, 64), seed=1)
    # Newer than the checkpoint, which it is not of.
    shutil.copyfile(work_dir / "resdcn_18.onnx", tmp_path / "resdcn_18.onnx")
    options = [*SMALL, "--contenders", "eager", "--work-dir", str(tmp_path), "--output-dir", str(tmp_path)]
    assert engine.main(options) == 0
    (row,) = json.loads((tmp_path / "engine.json").read_text())["rows"]
    assert row["status"] == "wrong"
    assert row["check"]["1"]["unmatched"] > 0.5
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
