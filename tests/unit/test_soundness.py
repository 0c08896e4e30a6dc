"""What every command refuses of an ONNX file, in one line, and what it takes however it is written."""

import foreign
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import dcn_report, to_repository
from export.errors import ExportError
from export.graphs import onnx_files, rewrite

PICTURE = foreign.picture(1, 3, 32, 48)
GEOMETRY = {"stride": 1, "padding": 1}


def dcn(model):
    (node,) = (each for each in model.graph.node if each.name == "theirs")
    return node


def written_as(model, op, **attributes):
    """Its DCN as another operator's."""
    node = dcn(model)
    data, weight, offset, _, mask = node.input
    node.CopyFrom(
        helper.make_node(op, [data, offset, mask, weight], node.output, name="theirs", **attributes)
    )
    return model


def with_attributes(**attributes):
    def change(model):
        node = dcn(model)
        kept = [each for each in node.attribute if each.name not in attributes]
        del node.attribute[:]
        node.attribute.extend(
            [*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())]
        )

    return change


def weight_with(value, op="Conv"):
    def change(model):
        name = next(node for node in model.graph.node if node.op_type == op).input[1]
        (tensor,) = (each for each in model.graph.initializer if each.name == name)
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] = value
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return change


def within_an_if(model):
    node = dcn(model)
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.name, inner.output[0] = "within", name
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16, "h", "w"])
        branches[name] = helper.make_graph([inner], name, [], [made])
    node.CopyFrom(helper.make_node("If", ["yes"], node.output, name="if", **branches))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))


def truncated(model):
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-8]


def change_of(code):
    def change(model):
        exec(code, {"graph": model.graph, "model": model, "dcn": dcn(model)})

    return change


FAULTS = {
    "a cycle": (change_of("graph.node[0].input[0] = graph.output[0].name"), "wait for each other: stem, "),
    "a dangling input": (change_of("dcn.input[0] = 'nothing'"), "input 'nothing' of node: name: theirs"),
    "one name twice": (change_of("graph.node[3].output[0] = graph.node[2].output[0]"), "multiple times"),
    "too few bytes": (truncated, r"c0\) raw_data size .* is too small"),
    "too few bytes of a small one": (change_of("graph.initializer[1].raw_data = b'123'"), "is too small"),
    "no bytes": (change_of("graph.initializer[0].raw_data = b''"), "one and only one value field"),
    "a later opset": (change_of("model.opset_import[0].version = 99"), "found opset 99, expected at most"),
    "a later format": (change_of("model.ir_version = 99"), "ir_version 99 is higher"),
    "no opset": (change_of("del model.opset_import[:]"), "No opset import for domain ''"),
    "no type": (change_of("graph.input[0].type.tensor_type.elem_type = 0"), "type of input 0 unknown"),
    "no output": (change_of("del graph.output[:]"), "found no output, expected at least one"),
    "NaN": (weight_with(np.nan), r"c0 has values that are not finite \(1 of 432\)"),
    "infinite weights": (weight_with(np.inf, "DeformConv"), r"has values that are not finite \(1 of 2304\)"),
    "one stride": (with_attributes(strides=[2]), "theirs.*strides has incorrect size"),
    "no stride": (with_attributes(strides=[0, 1]), "theirs.*strides must only contain positive"),
    "two pads": (with_attributes(pads=[1, 1]), "theirs.*pads has incorrect size"),
    "a kernel of three": (with_attributes(kernel_shape=[3, 3, 3]), "theirs.*kernel_shape has incorrect size"),
    "another kernel": (with_attributes(kernel_shape=[5, 5]), r"found kernel_shape \[5, 5\], expected \[3"),
    "more offset groups": (with_attributes(offset_group=2), "theirs: found channels of t2: 18, expected 36"),
    "more groups": (with_attributes(group=2), "theirs: found channels of t1: 16, expected 32"),
    "no groups": (with_attributes(group=0), r"theirs: found group \[0\], expected 1 of at least 1"),
    "another mask": (change_of("dcn.input[4] = dcn.input[2]"), "found channels of t2: 18, expected 9"),
    "half a stride": (
        lambda model: written_as(model, "DCN", stride=[2.7, 1.0], padding=1),
        r"theirs: a DCN has stride \[2\.7.*expected whole numbers",
    ),
    "half a stride in text": (
        lambda model: written_as(model, "Plugin", info="stride=2.7;padding=1", plugin_name="DCN"),
        r"theirs: a Plugin has stride \[2\.7\], expected whole numbers",
    ),
    "a stride back": (
        lambda model: written_as(model, "DCN", stride=-1, padding=1),
        r"theirs: found strides \[-1, -1\], expected 2 of at least 1",
    ),
    "more groups of others": (
        lambda model: written_as(model, "DCN", **GEOMETRY, groups=2),
        "theirs: found channels of t1: 16, expected 32",
    ),
    "a DCN in control flow": (within_an_if, "within: found a deformable convolution within If if, expected"),
    "their DCN in control flow": (
        lambda model: within_an_if(written_as(model, "DCN", **GEOMETRY)),
        "within: found a deformable convolution within If if, expected none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_line_by_all(fault, tmp_path):
    change, message = FAULTS[fault]
    model = foreign.separate()
    change(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    for command in (
        lambda path: dcn_report.main([path]),
        lambda path: to_repository.main([path, str(tmp_path / "repository"), "--name", "a"]),
    ):
        with pytest.raises(ExportError, match=message) as raised:
            command(str(tmp_path / "model.onnx"))
        assert str(raised.value).startswith(f"{tmp_path}/model.onnx: ")
        assert "\n" not in str(raised.value)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "model.json is empty"), (b'{"a": 1}', "model.json is not an ONNX file: ")],
    ids=["empty", "JSON"],
)
def test_what_is_no_model(content, message, tmp_path):
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(ExportError, match=message) as raised:
        onnx_files.load(tmp_path / "model.json")
    assert "\n" not in str(raised.value)


def as_function(model):
    """Its DCN in a function of the model's own, which has another node of that name."""
    node = dcn(model)
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    inputs = [name for name in node.input if name]
    imports = [helper.make_opsetid("", 19)]
    model.functions.append(helper.make_function("f", "Block", inputs, list(node.output), [inner], imports))
    node.CopyFrom(helper.make_node("Block", inputs, node.output, name="block", domain="f"))
    model.opset_import.append(helper.make_opsetid("f", 1))
    return model


def other_domain(model):
    for each in (*model.graph.node, *model.opset_import):
        each.domain = "ai.onnx"
    return model


def unsorted(model):
    model.graph.node.append(model.graph.node[0])
    del model.graph.node[0]
    return model


def one_name(model):
    for node in model.graph.node:
        node.name = "node"
    model.graph.node[3].name = "node_2"
    return model


def old_opset(model):
    model.opset_import[0].version = 18
    return model


WRITTEN = {
    "plain": lambda model: model,
    "ai.onnx": other_domain,
    "a function": as_function,
    "their node in a function": lambda model: as_function(written_as(model, "DCN", **GEOMETRY)),
    "in no order": unsorted,
    "one name for all": one_name,
    "opset 18": old_opset,
}


@pytest.mark.parametrize("written", WRITTEN)
def test_other_ways_to_write_the_same(written, tmp_path, capfd):
    """ONNX Runtime answers the same, and the DCN is found."""
    expected = foreign.run(foreign.separate(), {"x": PICTURE})
    path = foreign.save(WRITTEN[written](foreign.separate()), tmp_path / "model.onnx")
    to_repository.main([str(path), str(tmp_path / "repository"), "--name", "a"])
    served = onnx.load(tmp_path / "repository" / "a" / "1" / "model.onnx")
    np.testing.assert_allclose(foreign.run(served, {"x": PICTURE}), expected, atol=1e-5)
    capfd.readouterr()
    dcn_report.main([str(path)])
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == "| model | 1 | 1 | 1 | 1 | 1 |"
    assert not said.err


def test_weights_of_a_size_that_only_their_run_tells(tmp_path):
    g = foreign.Graph(shape=("n", 16, "h", "w"))
    g.inputs.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, ["o", "i", "kh", "kw"]))
    y = g.add("DeformConv", ["x", "weight", g.conv("x", 16, 18)], pads=[1] * 4)
    model = g.model(y)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(y, TensorProto.FLOAT, ["n", "o", "h", "w"]))
    path = foreign.save(model, tmp_path / "model.onnx")
    to_repository.main([str(path), str(tmp_path / "repository"), "--name", "a"])


def test_a_convolution_of_volumes(tmp_path):
    g = foreign.Graph(shape=(1, 4, 8, 8, 8))
    offset = g.add("Conv", ["x", g.weight(81, 4, 3, 3, 3)], pads=[1] * 6)
    y = g.add(
        "DeformConv", ["x", g.weight(4, 4, 3, 3, 3), offset], name="solid", pads=[1] * 6, kernel_shape=[3] * 3
    )
    path = foreign.save(g.model(y), tmp_path / "model.onnx")
    with pytest.raises(
        ExportError, match=r"model\.onnx: solid: found a weight whose dimensions are 5, expected 4"
    ):
        dcn_report.main([str(path)])


def test_infinite_bounds_are_no_damage(tmp_path):
    g = foreign.Graph()
    y = g.add("Clip", [g.conv("x", 3, 4), "", g.constant(np.float32(np.inf))])
    onnx_files.load(foreign.save(g.model(y), tmp_path / "model.onnx"))


def test_what_onnx_runtime_alone_refuses_is_not_written(tmp_path):
    model = foreign.separate()
    output = helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.FLOAT, ["n", 1, "h", "w"])
    model.graph.output[0].CopyFrom(output)
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    path = foreign.save(model, tmp_path / "model.onnx")
    with pytest.raises(
        ExportError, match=r"model\.onnx: ONNX Runtime cannot load it: .*com\.microsoft"
    ) as raised:
        to_repository.main([str(path), str(tmp_path / "repository"), "--name", "a"])
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "repository").iterdir())


def test_a_standard_model_stays_as_it_is():
    model = foreign.separate()
    assert rewrite.to_deform_conv(model) is model
