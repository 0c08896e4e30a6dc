"""ONNX files whose weights lie beside them."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.errors import UsageError
from export.files import sha256
from export.graphs import onnx_files

WEIGHTS = {name: np.full((4, 8), index, np.float32) for index, name in enumerate(("first", "second"))}


def graph_of(tensors, *, name="g"):
    nodes = [helper.make_node("Add", ["x", tensor.name], [f"y_{tensor.name}"]) for tensor in tensors]
    outputs = [helper.make_tensor_value_info(f"y_{t.name}", TensorProto.FLOAT, ["n", 8]) for t in tensors]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])]
    return helper.make_graph(nodes, name, inputs, outputs, tensors)


def save(folder, *, one_file=True, weights=WEIGHTS):
    """A model with external data, in one file or one for each weight."""
    path = folder / "model.onnx"
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(graph_of(tensors), opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    location = {"location": "model.onnx.data"} if one_file else {"all_tensors_to_one_file": False}
    onnx.save_model(model, path, save_as_external_data=True, size_threshold=0, **location)
    return path


def edit(path, change):
    """Changes the tensors of a file without looking at their data."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        change(tensor, {entry.key: entry for entry in tensor.external_data})
    onnx.save_model(model, path)


@pytest.mark.parametrize("one_file", [True, False])
def test_weights_are_read(tmp_path, one_file):
    model, _ = onnx_files.load(save(tmp_path, one_file=one_file))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], value)
    onnx.checker.check_model(onnx.load_from_string(model.SerializeToString()))


@pytest.mark.parametrize("one_file", [True, False])
def test_the_digest_is_of_every_file(tmp_path, one_file):
    path = save(tmp_path, one_file=one_file)
    before = path.read_bytes()
    files = [tmp_path / "model.onnx.data"] if one_file else [tmp_path / name for name in WEIGHTS]
    digests = {onnx_files.load(path)[1]}
    for file in files:
        content = bytearray(file.read_bytes())
        content[5] ^= 1
        file.write_bytes(content)
        digests.add(onnx_files.load(path)[1])
    assert path.read_bytes() == before
    assert len(digests) == 1 + len(files)


def test_files_that_change_places_are_others(tmp_path):
    path = save(tmp_path, one_file=False)
    _, before = onnx_files.load(path)
    first, second = tmp_path / "first", tmp_path / "second"
    first.rename(tmp_path / "third")
    second.rename(first)
    (tmp_path / "third").rename(second)
    assert onnx_files.load(path)[1] != before


def test_a_file_of_its_own_has_its_own_digest(tmp_path):
    path = tmp_path / "model.onnx"
    tensors = [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()]
    onnx.save_model(helper.make_model(graph_of(tensors)), path)
    assert onnx_files.load(path)[1] == sha256(path)


def test_data_of_attributes_and_subgraphs(tmp_path):
    """Not only initializers of the main graph may lie outside."""
    inner = numpy_helper.from_array(np.full((4, 8), 3, np.float32), "inner")
    constant = numpy_helper.from_array(np.full((4, 8), 4, np.float32), "constant")
    for tensor in (inner, constant):
        (tmp_path / tensor.name).write_bytes(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, tensor.name)
        tensor.ClearField("raw_data")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 8])],
        [inner],
    )
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("condition", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    digests = {onnx_files.load(path)[1]}
    for name in ("inner", "constant"):
        (tmp_path / name).write_bytes(bytes(range(128)))
        digests.add(onnx_files.load(path)[1])
    assert len(digests) == 3
    (tmp_path / "inner").unlink()
    with pytest.raises(UsageError, match=r"found no .*inner, which holds its weights"):
        onnx_files.load(path)


def refused(path, message):
    with pytest.raises(UsageError, match=message) as error:
        onnx_files.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value) or path.name in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    path = save(tmp_path, one_file=False)
    (tmp_path / "second").unlink()
    refused(path, r"found no .*second, which holds its weights \(second …\): put it beside the model")


def test_a_short_file_is_named(tmp_path):
    path = save(tmp_path)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    refused(path, r"model\.onnx\.data has \d+ bytes, expected at least \d+ for second of model\.onnx")


def test_a_short_file_without_lengths(tmp_path):
    path = save(tmp_path, one_file=False)
    edit(path, lambda tensor, facts: tensor.external_data.remove(facts["length"]))
    onnx_files.load(path)
    (tmp_path / "first").write_bytes(bytes(100))
    refused(path, "first has 100 bytes, expected at least 128 for first")


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "linked folder", "empty"])
def test_locations_outside_of_the_folder_are_refused(tmp_path, kind):
    folder = tmp_path / "model"
    folder.mkdir()
    path = save(folder, one_file=False)
    outside = tmp_path / "secret"
    outside.write_bytes((folder / "first").read_bytes())
    locations = {"above": "../secret", "absolute": str(outside), "linked folder": "in/secret", "empty": ""}
    if kind == "link":
        (folder / "first").unlink()
        (folder / "first").symlink_to(outside)
    elif kind == "linked folder":
        (folder / "in").symlink_to(tmp_path)
    if kind in locations:

        def change(tensor, facts):
            if tensor.name == "first":
                facts["location"].value = locations[kind]

        edit(path, change)
    refused(path, r"the data of first lie in .*, outside of the model's folder: expected a file in")


@pytest.mark.parametrize(("key", "value"), [("offset", "x"), ("length", "-4"), ("offset", "-8")])
def test_damaged_positions(tmp_path, key, value):
    path = save(tmp_path)

    def change(tensor, facts):
        facts[key].value = value

    edit(path, change)
    refused(path, "its external data cannot be read")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = save(tmp_path)
    (tmp_path / "model.onnx.data").chmod(0)
    refused(path, r"cannot read .*model\.onnx\.data: Permission denied")
