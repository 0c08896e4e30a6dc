"""What `export.to_repository` writes for every task of the family, and what it refuses."""

import json
import re
import shutil

import onnx
import pytest
import served_family as family
from centernet_image.contract import TASKS, models
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export import to_repository
from export.errors import UsageError
from export.repository import model_tensors

NAMES = list(family.NETWORKS)


def config(path):
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def tensors(fields):
    return {(f.name, model_config_pb2.DataType.Name(f.data_type), len(f.dims)) for f in fields}


@pytest.mark.parametrize("name", NAMES)
def test_configurations_are_the_contract(family_repository, name):
    """Both variants of the network, and of all models the tensors and the batch."""
    for model, sides in models(name, TASKS[name]).items():
        for path in (family_repository / model).rglob("*.pbtxt"):
            found = config(path)
            assert found.name == model
            assert found.max_batch_size == 8
            for fields, side in zip((found.input, found.output), sides, strict=True):
                assert tensors(fields) == {(t.name, f"TYPE_{t.dtype}", len(t.shape)) for t in side}, path
    network = family_repository / f"{name}_network"
    assert config(network / "config.pbtxt").platform == "tensorrt_plan"
    assert config(network / "configs" / "cpu.pbtxt").backend == "onnxruntime"
    assert not [path for path in family_repository.rglob("*") if path.is_symlink()]


def as_plan(source, folder, max_batch):
    """A file that stands for a plan, and the description that `export.to_plan` would write beside it."""
    model = onnx.load(source, load_external_data=False)
    found = model_tensors.of_model(model)
    batches = {"min": 1, "opt": 2, "max": max_batch}
    profiles = {
        each.name: {kind: [batch, *each.shape[1:]] for kind, batch in batches.items()}
        for each in found.inputs
    }
    facts = json.loads(source.with_suffix(".json").read_text(encoding="utf-8"))
    facts["plan"] = {"tensors": found.to_json(), "profiles": profiles}
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "model.plan").write_bytes(b"plan")
    return folder / "model.plan"


@pytest.mark.parametrize("name", ["boxes3d", "tracks"])
def test_a_plan_is_written_as_its_onnx_file_is(networks, tmp_path, name):
    plan = as_plan(networks[name], tmp_path / "plan", 4)
    folder = family.write_repository(name, plan, tmp_path / "repository")
    assert {each.name for each in folder.iterdir()} == set(models(name, TASKS[name]))
    assert {config(path).max_batch_size for path in folder.rglob("*.pbtxt")} == {4}
    version = folder / f"{name}_network" / "1"
    assert (version / "model.plan").read_bytes() == b"plan"
    # Both: the plan's limits hold, and its description stays.
    family.write_repository(name, networks[name], folder)
    assert {config(path).max_batch_size for path in folder.rglob("*.pbtxt")} == {4}
    assert "plan" in json.loads((version / "model.json").read_text(encoding="utf-8"))
    assert (version / "model.onnx").is_file()


def refused(*arguments):
    with pytest.raises(UsageError) as raised:
        to_repository.main(list(map(str, arguments)))
    return str(raised.value)


def test_what_cannot_be_served_is_refused(networks, tmp_path):
    folder = tmp_path / "repository"
    path = networks["keypoints"]
    assert "leave --picture out" in refused(path, folder, "--name", "a", "--picture")
    assert "--max-batch: found 0" in refused(path, folder, "--name", "a", "--max-batch", 0)
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == "task":
            entry.value = "embeddings"
    onnx.save(model, tmp_path / "other.onnx")
    assert "keypoints FP32, peaks FP32, scores FP32, expected" in refused(
        tmp_path / "other.onnx", folder, "--name", "a"
    )
    # As it was exported before the server asked for `peaks`.
    old = onnx.load(path)
    del old.graph.output[[output.name for output in old.graph.output].index("peaks")]
    onnx.save(old, tmp_path / "old.onnx")
    shutil.copyfile(path.with_suffix(".json"), tmp_path / "old.json")
    for source in (tmp_path / "old.onnx", as_plan(tmp_path / "old.onnx", tmp_path / "plan", 4)):
        said = refused(source, folder, "--name", "a")
        assert re.fullmatch(
            "found .*keypoints FP32, scores FP32, expected .*peaks FP32.*: export it again.*", said
        )
    assert not folder.exists()
