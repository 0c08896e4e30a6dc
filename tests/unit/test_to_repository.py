"""export.to_repository without a server: what it says of damaged files, and what it writes and leaves."""

import json
import subprocess
import sys
from pathlib import Path

import foreign
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from export import to_repository
from export.errors import ExportError, UsageError
from export.files import sha256

ROOT = Path(__file__).parents[2]
TENSORS = {
    "inputs": [{"name": "x", "dtype": "FP32", "shape": ["n", 3]}],
    "outputs": [{"name": "y", "dtype": "FP32", "shape": ["n"]}],
}
PROFILES = {"x": {"min": [1, 3], "opt": [2, 3], "max": [4, 3]}}


def write(path, folder, name="a"):
    to_repository.main([str(path), str(folder), "--name", name])
    return folder / name


def plan(folder, **facts):
    path = folder / "model.plan"
    path.write_bytes(b"plan")
    section = {"tensors": TENSORS, "profiles": PROFILES, "sha256": sha256(path)} | facts.pop("plan", {})
    path.with_suffix(".json").write_text(json.dumps({"plan": section, **facts}))
    return path


def refused(path, message):
    with pytest.raises(ExportError, match=message) as raised:
        write(path, path.parent / "repository")
    assert "\n" not in str(raised.value)
    assert not (path.parent / "repository" / "a").exists()


def test_a_plan_is_written(tmp_path):
    text = (write(plan(tmp_path), tmp_path / "repository") / "config.pbtxt").read_text()
    assert "max_batch_size: 4" in text
    assert '{ name: "x" data_type: TYPE_FP32 dims: [ 3 ] }' in text


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"form": "detector"}, r"model\.json does not describe a detector, expected classes"),
        ({"plan": {"profiles": {}}}, r"model\.json is damaged \(KeyError 'x'\): build the plan again"),
        ({"plan": {"profiles": None}}, r"model\.json is damaged \(TypeError"),
        ({"plan": {"profiles": {"x": {}}}}, r"model\.json is damaged \(KeyError 'min'"),
        ({"plan": {"tensors": {"inputs": [1]}}}, r"model\.json is damaged \(TypeError"),
        ({"plan": {"tensors": {}}}, r"model\.json has no tensors: build the plan again"),
        ({"plan": {"sha256": "0"}}, r"model\.plan is not the plan that .*model\.json describes"),
    ],
)
def test_damaged_descriptions_of_plans(facts, message, tmp_path):
    refused(plan(tmp_path, **facts), message)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "metadata lacks arch, checkpoint_sha256, classes, input_size, top_k: export it with"),
        ({"classes": "5"}, "its network is not described: "),
        ({"classes": "["}, "its network is not described: "),
        ({"input_size": "3"}, "its network is not described: "),
    ],
)
def test_damaged_metadata(facts, message, tmp_path):
    model = foreign.separate()
    good = {"arch": "a", "checkpoint_sha256": "0", "classes": '["a"]', "input_size": "[64, 64]", "top_k": "1"}
    helper.set_model_props(model, {"form": "detector"} | (good | facts if facts else {}))
    refused(foreign.save(model, tmp_path / "model.onnx"), rf"model\.onnx: .*{message}")


def test_an_output_of_unknown_dimensions(tmp_path):
    g = foreign.Graph()
    g.inputs.append(helper.make_tensor_value_info("sides", TensorProto.INT64, ["rank"]))
    path = foreign.save(g.model(g.add("Reshape", ["x", "sides"])), tmp_path / "model.onnx")
    refused(path, r"model\.onnx: t0 has no shape, and none follows: write it into the ONNX file")


def test_another_models_configuration_in_other_letters(tmp_path):
    other = tmp_path / "repository" / "a"
    other.mkdir(parents=True)
    (other / "config.pbtxt").write_bytes(b'name: "\xe4"')
    with pytest.raises(UsageError, match="is there and was not written by this command"):
        write(foreign.save(foreign.separate(), tmp_path / "model.onnx"), tmp_path / "repository")


def test_names_with_quotes(tmp_path):
    name = 'x"\\ö'
    model = foreign.separate(name=name)
    folder = write(foreign.save(model, tmp_path / "model.onnx"), tmp_path / "repository")
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert [each.name for each in config.input] == [name]


def test_an_end_by_sigterm_leaves_nothing(tmp_path):
    path = foreign.save(foreign.separate(), tmp_path / "model.onnx")
    # It ends itself when the folder with the new models is there.
    code = (
        "import os, runpy, signal, sys; from export.graphs import onnx_files\n"
        "onnx_files.check_served = lambda path: os.kill(os.getpid(), signal.SIGTERM)\n"
        "runpy.run_module('export.to_repository', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, path, tmp_path / "repository", "--name", "a"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert not list((tmp_path / "repository").iterdir())
