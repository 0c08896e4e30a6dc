"""INT8 graphs: which layers are quantized, and how near they are to the graph that they were made from."""

from functools import partial

import numpy as np
import onnx_graphsurgeon as gs
import pytest
import traced
from onnx import TensorProto, helper, numpy_helper
from traced import frames, run, to_fp16, types

from export.graphs import rewrite
from export.graphs.surgery import export_graph, import_graph, rewritten
from export.plan import precision, quantize


def error_db(expected, actual):
    """Energy of the difference relative to that of the signal."""
    assert expected.std() > 0.05, "nothing to compare"
    return 10 * np.log10(max(((expected - actual) ** 2).mean(), 1e-12) / expected.var())


def to_int8(model, feeds, **options):
    return rewritten(model, partial(quantize.to_int8, feeds=feeds, **options))


def test_groups_are_read_off_the_structure():
    groups = quantize.layer_groups(import_graph(traced.detector()))
    assert groups["stem"] == ["network.conv1/Conv"]
    assert sorted(groups["offsets"]) == [
        f"network.deconv_layers.{index}.conv_offset_mask/Conv" for index in (0, 12, 6)
    ]
    assert sorted(groups["heads"]) == [f"network.{head}.0/Conv" for head in ("hm", "reg", "wh")]
    assert sorted(groups["outputs"]) == [f"network.{head}.2/Conv" for head in ("hm", "reg", "wh")]
    assert groups["backbone"]
    assert all(name.startswith("network.layer") for name in groups["backbone"])


def _quantized(model):
    """Names of the convolutions whose input comes out of a DequantizeLinear."""
    nodes = [node for node in gs.import_onnx(model).nodes if node.op in precision.CONVOLUTIONS]
    return sorted(
        node.name
        for node in nodes
        if any(node.i(n).op == "DequantizeLinear" for n in range(2) if node.inputs[n].inputs)
    )


GROUPS = ("stem", "backbone", "offsets", "heads", "deformable")


@pytest.fixture(scope="module")
def int8():
    return to_int8(
        traced.detector(), frames(3), nodes=quantize.names(import_graph(traced.detector()), GROUPS)
    )


def test_int8_quantizes_the_groups_and_nothing_else(int8):
    assert _quantized(int8) == sorted(quantize.names(import_graph(traced.detector()), GROUPS))


def test_int8_is_of_the_kind_that_tensorrt_takes(int8):
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    scales = {
        len(np.atleast_1d(constants[node.input[1]]))
        for node in int8.graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert 1 in scales, "activations: one scale"
    assert len(scales) > 1, "weights: one for each channel"
    for node in int8.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()


def test_int8_sums_read_the_quantized_skip(int8):
    sums = [node for node in gs.import_onnx(int8).nodes if node.op == "Add" and "layer1" in node.name]
    assert sums
    for node in sums:
        assert "DequantizeLinear" in {node.i(0).op, node.i(1).op}


def test_int8_pairs_are_where_tensorrt_fuses_them(int8):
    """None between a convolution and its ReLU or sum; one for each tensor; one scale for what is joined."""
    nodes = gs.import_onnx(int8).nodes
    quantized = [node.i(0) for node in nodes if node.op == "QuantizeLinear" and node.inputs[0].inputs]
    assert len({node.name for node in quantized}) == len(quantized)
    for node in quantized:
        if node.op in precision.CONVOLUTIONS:
            (pair,) = node.o(0).outputs
            assert {reader.op for reader in pair.outputs} == {"DequantizeLinear"}
            (dequantized,) = pair.outputs[0].outputs
            # The skip of a sum is all that is read without a ReLU.
            assert {reader.op for reader in dequantized.outputs} == {"Add"}, node.name
    pools = [node for node in nodes if node.op == "MaxPool" and node.name.startswith("network.")]
    assert pools
    for node in pools:
        before, (behind,) = node.i(0), node.outputs[0].outputs
        assert (before.op, behind.op) == ("DequantizeLinear", "QuantizeLinear")
        assert before.inputs[1].values == behind.inputs[1].values


def test_int8_joins_parts_of_one_scale():
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), "w")
    double = numpy_helper.from_array(np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1), "ww")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Concat", ["b", "d"], ["e"], axis=1),
        helper.make_node("Conv", ["e", "ww"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count, 4, 4])
        for name, count in (("x", 4), ("y", 8))
    ]
    body = helper.make_graph(nodes, "g", values[:1], values[1:], [weight, double])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    feed = {"x": 9 * np.random.default_rng(0).normal(0, 1, (1, 4, 4, 4)).astype(np.float32)}
    made = to_int8(model, [feed], nodes=["Conv_0", "Conv_2", "Conv_5"])
    scales = {
        node.inputs[0].name: float(node.inputs[1].values)
        for node in gs.import_onnx(made).nodes
        if node.op == "QuantizeLinear" and node.inputs[0].inputs
    }
    assert set(scales) == {"b", "d", "e"}
    assert len(set(scales.values())) == 1
    assert scales["b"] == pytest.approx(max(feed["x"].max(), 1) / 127, rel=1e-5)


def test_int8_is_near(int8):
    detector, (feed,) = traced.detector(), frames(1)
    expected = run(detector, feed)
    one_group = to_int8(detector, frames(8), nodes=quantize.names(import_graph(detector), ["heads"]))
    assert -80 < error_db(expected["hm"], run(one_group, feed)["hm"]) < -25
    assert error_db(expected["hm"], run(int8, feed)["hm"]) < -20


def test_int8_with_fp16_around_it(int8):
    mixed = to_fp16(int8)
    found = types(mixed)
    assert {found[name] for name in found if name.startswith("network.") and name.endswith("Conv")} == {
        np.dtype("float16")
    }
    (feed,) = frames(1)
    assert error_db(run(int8, feed)["hm"], run(mixed, feed)["hm"]) < -20
    assert not [node.name for node in mixed.graph.node if node.op_type == "Cast" and "weight" in node.name]


def test_int8_of_single_layers():
    name = quantize.layer_groups(import_graph(traced.detector()))["backbone"][0]
    assert _quantized(to_int8(traced.detector(), frames(1), nodes=[name])) == [name]


def test_int8_needs_pictures():
    with pytest.raises(precision.PrecisionError, match="no picture"):
        to_int8(traced.detector(), [])
    with pytest.raises(precision.PrecisionError, match="no convolution to quantize"):
        to_int8(traced.detector(), frames(1), nodes=[])


def test_every_form_survives_the_plugin_rewrite(int8):
    detector, (feed,) = traced.detector(), frames(1)
    mixed = to_fp16(int8)
    # FP16 rounds otherwise in the way back, and what is quantized behind it may fall to the other side.
    for model, limit in ((detector, -60), (to_fp16(detector), -60), (int8, -60), (mixed, -30)):
        fused = rewritten(model, rewrite.to_dcnv2)
        nodes = [node for node in fused.graph.node if node.op_type == "DCNv2"]
        assert len(nodes) == 3
        for node in nodes:
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            assert [attributes[name] for name in ("packed_offset_mask", "weight_ohwi", "relu")] == [1, 1, 1]
            assert attributes.get("quantized", 0) == (model in (int8, mixed))
        found = run(rewrite.to_deform_conv(fused), feed)["hm"]
        assert error_db(run(model, feed)["hm"], found) < limit


def test_what_the_int8_kernel_cannot_run_stays_as_it_is(int8):
    """Its samples have no room for masks beyond 1."""
    graph = import_graph(int8)
    for node in [node for node in graph.nodes if node.op == "DeformConv"]:
        node.inputs[4].inputs[0].op = "Exp"
    fused = rewritten(export_graph(graph), rewrite.to_dcnv2)
    nodes = [node for node in fused.graph.node if node.op_type == "DCNv2"]
    assert len(nodes) == 3
    assert not any(attribute.name == "quantized" for node in nodes for attribute in node.attribute)
