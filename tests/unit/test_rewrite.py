"""The rewrites change nothing that ONNX Runtime can see."""

from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graphs import rewrite
from export.graphs.surgery import rewritten

KERNEL = (3, 2)
CHANNELS, OUT_CHANNELS = 6, 4
OFFSET_GROUPS, GROUPS = 3, 2
TAPS = OFFSET_GROUPS * KERNEL[0] * KERNEL[1]


def _constant(name, values):
    return numpy_helper.from_array(np.asarray(values), name)


def _split(style):
    """Nodes that cut `packed` into `offset` and the mask's `logits`, as exporters write them."""
    if style == "split":
        sizes = _constant("sizes", np.array([2 * TAPS, TAPS], np.int64))
        return [helper.make_node("Split", ["packed", "sizes"], ["offset", "logits"], axis=1)], [sizes]
    if style == "chunks":
        return [
            helper.make_node("Split", ["packed"], ["y", "x", "logits"], axis=1, num_outputs=3),
            helper.make_node("Concat", ["y", "x"], ["offset"], axis=1),
        ], []
    bounds = {"zero": 0, "two": 2 * TAPS, "end": 2**31, "axis": 1}
    constants = [_constant(name, np.array([value], np.int64)) for name, value in bounds.items()]
    if style == "slice":
        ends = (("zero", "two", "offset"), ("two", "end", "logits"))
    else:  # the mask first: not the plugin's order
        bounds = _constant("one", np.array([TAPS], np.int64))
        constants.append(bounds)
        ends = (("one", "end", "offset"), ("zero", "one", "logits"))
    nodes = [helper.make_node("Slice", ["packed", start, end, "axis"], [out]) for start, end, out in ends]
    return nodes, constants


def deform_model(style="split", *, mask=True, bias=True, relu=True, pads=(1, 0, 1, 0)):
    """A convolution that makes the offsets, and a lopsided DeformConv."""
    rng = np.random.default_rng(0)
    packed = 3 * TAPS
    constants = [
        _constant("offset_weight", rng.normal(0, 0.4, (packed, CHANNELS, *KERNEL)).astype(np.float32)),
        _constant("offset_bias", rng.normal(0, 1.5, packed).astype(np.float32)),
        _constant("weight", rng.normal(0, 1, (OUT_CHANNELS, CHANNELS // GROUPS, *KERNEL)).astype(np.float32)),
        _constant("bias", rng.normal(0, 1, OUT_CHANNELS).astype(np.float32)),
    ]
    geometry = {"strides": [2, 1], "dilations": [3, 2]}
    nodes = [
        helper.make_node(
            "Conv",
            ["data", "offset_weight", "offset_bias"],
            ["packed"],
            pads=pads,
            kernel_shape=KERNEL,
            **geometry,
        )
    ]
    cut, cut_constants = _split(style)
    nodes += cut
    constants += cut_constants
    if mask:
        nodes.append(helper.make_node("Sigmoid", ["logits"], ["mask"]))
    inputs = ["data", "weight", "offset", "bias" if bias else "", "mask" if mask else ""]
    while not inputs[-1]:
        inputs.pop()
    nodes.append(
        helper.make_node(
            "DeformConv", inputs, ["linear" if relu else "out"], name="layer", pads=pads, group=GROUPS,
            offset_group=OFFSET_GROUPS, **geometry,
        )
    )  # fmt: skip
    if relu:
        nodes.append(helper.make_node("Relu", ["linear"], ["out"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", CHANNELS, "h", "w"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", OUT_CHANNELS, None, None])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    model.metadata_props.add(key="arch", value="toy")
    return onnx.shape_inference.infer_shapes(model)


def run(model, shape=(2, CHANNELS, 9, 7)):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    data = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
    return session.run(None, {"data": data})[0]


def to_dcnv2(model, **options):
    return rewritten(model, partial(rewrite.to_dcnv2, **options))


def _dcn(model):
    return next(node for node in model.graph.node if node.op_type == "DCNv2")


def _attributes(node):
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


@pytest.mark.parametrize("style", ["split", "chunks", "slice"])
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_there_and_back_changes_nothing(style, fuse, relu):
    model = deform_model(style, relu=relu)
    made = to_dcnv2(model, fuse=fuse)
    attributes = _attributes(_dcn(made))
    assert attributes.get("packed_offset_mask", 0) == fuse
    assert attributes.get("weight_ohwi", 0) == fuse
    assert attributes.get("relu", 0) == (fuse and relu)
    assert len(_dcn(made).input) == (4 if fuse else 5)
    if fuse:
        assert {node.op_type for node in made.graph.node} == {"Conv", "DCNv2"}
    np.testing.assert_allclose(run(rewrite.to_deform_conv(made)), run(model), atol=1e-5)


def test_attributes_and_names():
    model = deform_model()
    made = to_dcnv2(model)
    node = _dcn(made)
    assert node.name == "layer"
    assert list(node.output) == ["out"]
    assert list(node.input)[:2] == ["data", "packed"]
    assert node.input[3] == "bias"
    assert _attributes(node) == {
        "stride": [2, 1],
        "padding": [1, 0],
        "dilation": [3, 2],
        "groups": GROUPS,
        "deformable_group": OFFSET_GROUPS,
        "packed_offset_mask": 1,
        "weight_ohwi": 1,
        "relu": 1,
    }
    weight = next(t for t in made.graph.initializer if t.name == node.input[2])
    assert tuple(weight.dims) == (OUT_CHANNELS, *KERNEL, CHANNELS // GROUPS)
    assert [(prop.key, prop.value) for prop in made.metadata_props] == [("arch", "toy")]


def test_another_channel_order_is_not_fused():
    model = deform_model("mask first")
    made = to_dcnv2(model)
    assert "packed_offset_mask" not in _attributes(_dcn(made))
    np.testing.assert_allclose(run(rewrite.to_deform_conv(made)), run(model), atol=1e-5)


def test_relu_stays_where_the_sum_before_it_is_used():
    model = deform_model()
    model.graph.output.append(helper.make_tensor_value_info("linear", TensorProto.FLOAT, None))
    made = to_dcnv2(model)
    assert "relu" not in _attributes(_dcn(made))
    assert list(_dcn(made).output) == ["linear"]


@pytest.mark.parametrize(("mask", "bias"), [(False, True), (True, False), (False, False)])
def test_omitted_inputs_are_filled_in(mask, bias):
    model = deform_model(mask=mask, bias=bias)
    made = to_dcnv2(model)
    assert all(_dcn(made).input)
    back = rewrite.to_deform_conv(made)
    for shape in ((1, CHANNELS, 9, 7), (3, CHANNELS, 12, 17)):
        np.testing.assert_allclose(run(back, shape), run(model, shape), atol=1e-5)


def test_nodes_without_names_do_not_share_what_is_made_for_them():
    model = deform_model("split", mask=False, bias=False, relu=False)
    weight = np.random.default_rng(2).normal(0, 1, (5, OUT_CHANNELS, 1, 1)).astype(np.float32)
    model.graph.initializer.extend(
        [
            _constant("second_weight", weight),
            _constant("second_offset", np.full((1, 2, 1, 1), 0.3, np.float32)),
        ]
    )
    first = next(node for node in model.graph.node if node.op_type == "DeformConv")
    first.ClearField("name")
    before = model.graph.output[0].name
    model.graph.node.extend(
        [
            helper.make_node("Shape", [before], ["sides"], start=2, end=4),
            helper.make_node("Shape", [before], ["batch"], start=0, end=1),
            helper.make_node("Constant", [], ["pair"], value=_constant("pair", np.array([2], np.int64))),
            helper.make_node("Concat", ["batch", "pair", "sides"], ["offset_shape"], axis=0),
            helper.make_node("Expand", ["second_offset", "offset_shape"], ["second_offsets"]),
            helper.make_node("DeformConv", [before, "second_weight", "second_offsets"], ["second"]),
        ]
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("second", TensorProto.FLOAT, None))
    back = rewrite.to_deform_conv(to_dcnv2(model))
    np.testing.assert_allclose(run(back), run(model), atol=1e-5)


@pytest.mark.parametrize("style", ["split", "slice"])
def test_constants_may_be_nodes(style):
    model = deform_model(style)
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer
    ]
    nodes += model.graph.node
    expected = run(model)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    made = to_dcnv2(model)
    assert {node.op_type for node in made.graph.node} == {"Conv", "DCNv2"}
    np.testing.assert_allclose(run(rewrite.to_deform_conv(made)), expected, atol=1e-5)


def test_original_projects_node_of_an_old_opset_runs():
    model = deform_model(relu=False)
    old = to_dcnv2(model, fuse=False)
    node = _dcn(old)
    del node.attribute[:]
    node.attribute.extend(
        helper.make_attribute(name, value)
        for name, value in {
            "stride": 1,
            "padding": 1,
            "dilation": 1,
            "groups": 2,
            "deformable_group": 3,
        }.items()
    )
    old.graph.node[0].CopyFrom(
        helper.make_node("Conv", ["data", "offset_weight", "offset_bias"], ["packed"], pads=[1, 1, 1, 1])
    )
    split = next(n for n in old.graph.node if n.op_type == "Split")
    split.CopyFrom(
        helper.make_node("Split", ["packed"], ["offset", "logits"], axis=1, split=[2 * TAPS, TAPS])
    )
    old.opset_import[0].version = 11
    del old.graph.value_info[:]
    out = run(rewrite.to_deform_conv(old))
    assert out.shape == (2, OUT_CHANNELS, 9, 8)
    # and the plugin's form is reached from there too
    again = rewrite.to_deform_conv(to_dcnv2(old))
    np.testing.assert_allclose(run(again), out, atol=1e-5)


def test_uneven_padding_is_refused():
    with pytest.raises(rewrite.RewriteError, match=r"layer: found pads \[1, 0, 2, 0\], expected the same"):
        to_dcnv2(deform_model(pads=(1, 0, 2, 0)))


def test_wrong_number_of_inputs_is_refused():
    made = to_dcnv2(deform_model())
    _dcn(made).input.pop()
    with pytest.raises(
        rewrite.RewriteError, match="layer: found 3 inputs, expected 4 with packed_offset_mask 1"
    ):
        rewrite.to_deform_conv(made)


@pytest.mark.parametrize("groups", [1, 2, CHANNELS])
def test_only_depthwise_upsampling_becomes_dense(groups):
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 1, (CHANNELS, CHANNELS // groups, 4, 3)).astype(np.float32)
    attributes = {"group": groups, "strides": [2, 2], "pads": [1, 0, 1, 1], "output_padding": [0, 1]}
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("ConvTranspose", ["data", "weight", "bias"], ["once"], "once", **attributes),
                helper.make_node("ConvTranspose", ["once", "weight"], ["out"], "twice", **attributes),
            ],
            "upsampling",
            [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", CHANNELS, 9, 7])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", CHANNELS, "h", "w"])],
            [_constant("weight", weight), _constant("bias", rng.normal(0, 1, CHANNELS).astype(np.float32))],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    made = rewritten(model, rewrite.to_dense_conv_transpose)
    assert len(made.graph.initializer) == 2
    assert [_attributes(node)["group"] for node in made.graph.node] == 2 * [groups % CHANNELS or 1]
    np.testing.assert_allclose(run(made), run(model), rtol=1e-5, atol=1e-5)
