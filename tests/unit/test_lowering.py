"""The graph that TensorRT gets: types, Q/DQ, TF32 of each precision."""

from collections import Counter
from unittest import mock

import foreign
import numpy as np
import onnx_graphsurgeon as gs
import pytest
import traced
from onnx import TensorProto, helper, numpy_helper
from traced import frames, run

from export.graphs import rewrite
from export.graphs.surgery import import_graph
from export.plan import lowering, precision, quantize

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
GROUPS = ("stem", "backbone", "offsets", "heads", "deformable")
HALF, SINGLE = np.dtype("float16"), np.dtype("float32")


@pytest.fixture(scope="module")
def model():
    return traced.detector()


@pytest.fixture(scope="module")
def made(model):
    groups = {"int8": GROUPS}
    return {
        name: lowering.make(model, name, frames(2), int8_groups=groups.get(name, ()))
        for name in lowering.PRECISIONS
    }


def nodes(made, name):
    return gs.import_onnx(made[name].model).nodes


def operators(made, name):
    return Counter(node.op for node in nodes(made, name))


def computed_in(node):
    """The types of what a convolution reads, scales and regions apart."""
    return {np.dtype(tensor.dtype) for tensor in node.inputs if not tensor.is_empty()}


def layers(made, name):
    return [node for node in nodes(made, name) if node.op in precision.CONVOLUTIONS]


@pytest.mark.parametrize(("name", "exports"), [("fp32", 3), ("tf32", 3), ("fp16", 3), ("int8", 4)])
def test_all_passes_share_one_graph(model, name, exports):
    """It is exported for the three models of the result, and once more for INT8's calibration."""
    with (
        mock.patch.object(gs, "import_onnx", wraps=gs.import_onnx) as imported,
        mock.patch.object(gs, "export_onnx", wraps=gs.export_onnx) as exported,
    ):
        lowering.make(model, name, frames(1))
    assert (imported.call_count, exported.call_count) == (1, exports)


def test_types_and_shapes_follow_every_pass(made):
    for name in lowering.PRECISIONS:
        foreign.assert_types(made[name].rounded)


def test_every_form_has_the_plugins_nodes(model, made):
    for name in lowering.PRECISIONS:
        found = operators(made, name)
        assert (found["DCNv2"], found["DeformConv"]) == (3, 0)
        reference = Counter(node.op_type for node in made[name].reference.graph.node)
        assert reference == Counter(node.op_type for node in model.graph.node)


def test_fp32_is_fp32(model, made):
    assert not made["fp32"].tf32
    assert not any(operators(made, "fp32")[quantizer] for quantizer in QUANTIZERS)
    for node in layers(made, "fp32"):
        assert computed_in(node) == {SINGLE}, node.name


def test_tf32_is_fp32_that_may_be_rounded(made):
    assert made["tf32"].tf32
    for node in layers(made, "tf32"):
        assert computed_in(node) == {SINGLE}, node.name
    for node in nodes(made, "tf32"):
        assert node.op != "DCNv2" or node.attrs["allow_tf32"] == 1


def test_fp16_computes_every_layer_in_halves(made):
    assert made["fp16"].tf32
    assert not any(operators(made, "fp16")[quantizer] for quantizer in QUANTIZERS)
    for node in layers(made, "fp16"):
        assert computed_in(node) == {HALF}, node.name


def test_int8_quantizes_its_groups_and_the_rest_is_fp16(model, made):
    assert made["int8"].tf32
    expected = sorted(quantize.names(import_graph(model), GROUPS[:-1]))
    found = sorted(
        node.name
        for node in layers(made, "int8")
        if all(tensor.inputs and tensor.inputs[0].op == "DequantizeLinear" for tensor in node.inputs[:2])
    )
    assert found == expected
    assert len(found) > 10
    for node in layers(made, "int8"):
        if node.op == "DCNv2":
            assert [np.dtype(tensor.dtype) for tensor in (node.inputs[0], node.inputs[2])] == [np.int8] * 2
        else:
            assert computed_in(node) == {HALF}, node.name
    for node in nodes(made, "int8"):
        if node.op == "QuantizeLinear":
            assert node.outputs[0].dtype == np.int8 or node.inputs[2].dtype == np.int8, node.name
            # The normalised picture is FP32.
            assert node.inputs[1].dtype == node.inputs[0].dtype, node.name


def test_int8_by_default_quantizes_what_it_makes_faster(model):
    """The last blocks of the backbone, but for those that a narrower one leads into."""
    found = nodes({"int8": lowering.make(model, "int8", frames(1))}, "int8")
    quantized = [
        node.name.removeprefix("network.").removesuffix("/Conv")
        for node in found
        if node.op in precision.CONVOLUTIONS and node.inputs[0].inputs[0].op == "DequantizeLinear"
    ]
    last = ["layer4.0.conv1", "layer4.0.conv2", "layer4.0.downsample.0", "layer4.1.conv1", "layer4.1.conv2"]
    assert sorted(quantized) == ["layer3.1.conv1", "layer3.1.conv2", *last]
    assert {np.dtype(node.inputs[0].dtype) for node in found if node.op == "DCNv2"} == {HALF}


def test_int8_leaves_what_is_kept_in_fp32(model):
    kept = lowering.make(model, "int8", frames(1), keep_fp32=["*layer4*"])
    types = {node.name: node.inputs[0].dtype for node in layers({"int8": kept}, "int8")}
    assert {dtype for name, dtype in types.items() if "layer4" in name} == {SINGLE}
    offsets = lowering.make(model, "int8", frames(1), int8_groups=GROUPS, fp32_offsets=True)
    for node in layers({"int8": offsets}, "int8"):
        if "conv_offset_mask" in node.name:
            assert computed_in(node) == {SINGLE}
            assert node.inputs[1].inputs == [] or node.inputs[1].inputs[0].op != "DequantizeLinear"


@pytest.mark.parametrize(("name", "group"), [("fp32", 8), ("fp16", 1), ("int8", 1)])
def test_depthwise_upsampling_is_dense_where_tensor_cores_are(name, group):
    weight = np.ones((8, 1, 2, 2), np.float32)
    nodes = [helper.make_node("ConvTranspose", ["x", "weight"], ["y"], group=8, strides=[2, 2])]
    body = helper.make_graph(
        nodes,
        "upsampling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 8, 8])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    made = lowering.make(model, name, [{"x": foreign.picture(1, 8, 4, 4)}], int8_groups=["upsampling"])
    (node,) = layers({name: made}, name)
    assert node.attrs["group"] == group
    foreign.assert_types(made.rounded)


def test_inputs_and_outputs_are_the_models_own(model, made):
    for name in lowering.PRECISIONS:
        for found, wanted in (
            (made[name].model.graph.input, model.graph.input),
            (made[name].model.graph.output, model.graph.output),
        ):
            assert [(t.name, t.type.tensor_type.elem_type) for t in found] == [
                (t.name, t.type.tensor_type.elem_type) for t in wanted
            ]


@pytest.mark.parametrize(
    ("name", "low", "high"), [("fp32", 0, 1e-5), ("fp16", 1e-5, 0.02), ("int8", 1e-3, 0.5)]
)
def test_it_computes_what_the_model_does(model, made, name, low, high):
    (feed,) = frames(1)
    expected, found = run(model, feed)["hm"], run(rewrite.to_deform_conv(made[name].model), feed)["hm"]
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert low <= error <= high, error
    assert expected.std() > 0.05


def test_only_int8_looks_at_pictures(model):
    def none():
        raise AssertionError("a picture was asked for")
        yield

    for name in ("fp32", "tf32", "fp16"):
        lowering.make(model, name, none())
    with pytest.raises(precision.PrecisionError, match="no picture"):
        lowering.make(model, "int8")
    with pytest.raises(ValueError, match="found precision fp8, expected one of fp32, tf32, fp16, int8"):
        lowering.make(model, "fp8")
