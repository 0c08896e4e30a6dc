"""Others' nodes for a DCN become DeformConv, with the same answer, or are refused by name."""

import json

import foreign
import numpy as np
import onnx
import pytest
from onnx import helper

from export.graphs import foreign_nodes, rewrite
from export.graphs.surgery import RewriteError
from export.plan import lowering

GEOMETRY = {"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2]}


def reference(*, mask=True, bias=True):
    """A lopsided DeformConv with 2 groups and 2 offset groups."""
    g = foreign.Graph()
    x = g.conv("x", 3, 8, name="stem")
    taps, geometry = 6, {"strides": [2, 1], "pads": [1, 2, 1, 2], "dilations": [1, 2]}
    packed_weight = g.weight(3 * 2 * taps, 8, 3, 2, scale=0.2)
    packed = g.add("Conv", [x, packed_weight], kernel_shape=[3, 2], name="packed", **geometry)
    sizes = g.constant(np.array([4 * taps, 2 * taps], np.int64))
    g.nodes.append(helper.make_node("Split", [packed, sizes], ["offset", "logits"], axis=1, name="split"))
    inputs = [x, g.weight(4, 4, 3, 2), "offset"]
    inputs.append(g.constant(np.arange(4, dtype=np.float32)) if bias else "")
    if mask:
        inputs.append(g.add("Sigmoid", ["logits"]))
    while not inputs[-1]:
        inputs.pop()
    return g.model(g.add("DeformConv", inputs, name="theirs", group=2, offset_group=2, **geometry))


def written_as(model, op, domain, order, **attributes):
    """The same, its DeformConv as `op` with its tensors in `order`, by their index."""
    (node,) = (each for each in model.graph.node if each.op_type == "DeformConv")
    inputs = [*node.input, "", ""]
    ordered = [inputs[i] for i in order if inputs[i]]
    new = helper.make_node(op, ordered, node.output, domain=domain)
    new.name = "theirs"
    new.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    node.CopyFrom(new)
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


USUAL = (0, 2, 4, 1, 3)
INFO = {"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2], "groups": 2, "deformable_groups": 2}
KINDS = {
    "mmcv": ("MMCVModulatedDeformConv2d", "mmcv", USUAL, {**GEOMETRY, "groups": 2, "deform_groups": 2}),
    "mmdeploy": ("MMCVModulatedDeformConv2d", "mmdeploy", USUAL, {**GEOMETRY, "groups": 2}),
    "nvidia": ("ModulatedDeformConv2d", "", USUAL, {**GEOMETRY, "group": 2, "deformable_group": 2}),
    "DCNv2_2": ("DCNv2_2", "", USUAL, {**GEOMETRY, "groups": 2, "deformable_groups": 2}),
    "DCNv2_TRT": ("DCNv2_TRT", "", USUAL, {**GEOMETRY, "groups": 2, "deformable_groups": 2, "oc": 4}),
    "DCN": ("DCN", "", USUAL, {**GEOMETRY, "groups": 2, "deformable_groups": 2}),
    "aliases": ("DCNv2", "", USUAL, {**GEOMETRY, "groups": 2, "deformable_groups": 2}),
    "groups left out": ("DCN", "", USUAL, {**GEOMETRY, "groups": 2}),
    "another order": ("DCN", "", (0, 1, 2, 3, 4), {**GEOMETRY, "groups": 2}),
    "plugin with info": ("Plugin", "", USUAL, {"name": "DCNv2", "info": json.dumps(INFO)}),
    "info alone": ("Plugin", "", USUAL, {"info": json.dumps(INFO)}),
    "text": ("Plugin", "", USUAL, {"name": "DCN", "info": "stride=2,1;padding=1,2;dilation=1,2;groups=2"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_they_answer_the_same(kind, bias):
    op, domain, order, attributes = KINDS[kind]
    model = written_as(reference(bias=bias), op, domain, order, **attributes)
    feed = {"x": foreign.picture(2, 3, 11, 9)}
    found = foreign.run(rewrite.to_deform_conv(model), feed)
    np.testing.assert_array_equal(found, foreign.run(reference(bias=bias), feed))


def test_types_and_shapes_behind_them_are_inferred():
    attributes = {"stride": 1, "padding": 1, "deform_groups": 1}
    model = written_as(foreign.separate(), "MMCVModulatedDeformConv2d", "mmcv", USUAL, **attributes)
    foreign.assert_types(lowering.make(model, "fp16").rounded)


def test_version_1_without_mask():
    attributes = {**GEOMETRY, "groups": 2, "deform_groups": 2, "bias": 0, "im2col_step": 32}
    model = written_as(reference(mask=False, bias=False), "MMCVDeformConv2d", "mmcv", (0, 2, 1), **attributes)
    feed = {"x": foreign.picture(1, 3, 11, 9)}
    expected = foreign.run(reference(mask=False, bias=False), feed)
    np.testing.assert_array_equal(foreign.run(rewrite.to_deform_conv(model), feed), expected)


def test_offsets_and_mask_before_its_sigmoid_in_one_tensor():
    model = reference()
    (split,) = (node for node in model.graph.node if node.op_type == "Split")
    (node,) = (node for node in model.graph.node if node.op_type == "DeformConv")
    inputs = [node.input[0], split.input[0], node.input[1], node.input[3]]
    node.CopyFrom(helper.make_node("Plugin", inputs, node.output, name="theirs", info=json.dumps(INFO)))
    feed = {"x": foreign.picture(1, 3, 11, 9)}
    found = foreign.run(rewrite.to_deform_conv(model), feed)
    np.testing.assert_array_equal(found, foreign.run(reference(), feed))


def test_an_old_opset_is_raised():
    g = foreign.Graph()
    offset, mask = g.conv("x", 3, 18), g.add("Sigmoid", [g.conv("x", 3, 9)])
    y = g.add("DCN", ["x", offset, mask, g.weight(4, 3, 3, 3)], stride=1, padding=1)
    model = rewrite.to_deform_conv(g.model(y, opset=11))
    assert foreign.run(model, {"x": foreign.picture(1, 3, 8, 8)}).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("op", "attributes", "message"),
    [
        ("DCN", {"groups": 2}, r"theirs: a DCN does not say its stride and padding: found the attributes gr"),
        ("Plugin", {"name": "DCNv2", "info": ""}, r"theirs: a Plugin does not say its stride and padding"),
        ("DCN", {**GEOMETRY, "curl": 3}, r"theirs: a DCN has the attribute curl, which is not known"),
        ("DCN", {**GEOMETRY, "groups": 2, "deformable_groups": 3}, "channels of offset: 24, expected 36"),
        ("DCN", {**GEOMETRY, "kernel_size": 5}, r"says kernel \[5, 5\], expected its weight's: \[3, 2\]"),
        ("DCN", {**GEOMETRY, "padding": [1, 2, 2, 2]}, r"has padding \[1, 2, 2, 2\], expected one number"),
    ],
)  # fmt: skip
def test_too_little_or_too_much_is_one_line(op, attributes, message):
    model = written_as(reference(), op, "", USUAL, **attributes)
    with pytest.raises(RewriteError, match=message) as raised:
        rewrite.to_deform_conv(model)
    assert "\n" not in str(raised.value)


def test_other_nodes_are_left_and_named():
    g = foreign.Graph()
    y = g.add("Plugin", [g.conv("x", 3, 4)], name="odd", info='{"size": 3}')
    y = g.add("Blob", [y], name="odder", domain="mine")
    model = rewrite.to_deform_conv(g.model(y))
    assert list(foreign_nodes.unknown_nodes(model)) == [("odd", "Plugin"), ("odder", "mine::Blob")]
    branch = onnx.GraphProto()
    branch.node.add(op_type="Curl", name="inner", output=["z"])
    model.graph.node.append(helper.make_node("If", ["y"], ["z2"], then_branch=branch, else_branch=branch))
    assert ("inner", "Curl") in list(foreign_nodes.unknown_nodes(model))
