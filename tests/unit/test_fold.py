"""What is folded into a DCN changes nothing that ONNX Runtime can see, and leaves nothing beside it."""

from collections import Counter

import foreign
import numpy as np
import onnx
import pytest

from export.graphs import rewrite
from export.graphs.fold import fold
from export.graphs.surgery import rewritten
from export.plan import lowering, precision
from export.plan.precision import PrecisionError


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("factor", [2.0, 1.0, 0.5])
def test_separate_convolutions_factor_norm_and_relu_are_one_node(factor):
    model = foreign.separate(factor=factor)
    network = lowering.make(model, "fp32")
    (attributes,) = foreign.attributes(network.model)
    assert (attributes["packed_offset_mask"], attributes["relu"], attributes["weight_ohwi"]) == (1, 1, 1)
    left = operators(network.model)
    assert left == {"Conv": 3, "Relu": 1, "DCNv2": 1, "Sigmoid": 1}
    feed = {"x": foreign.picture(2, 3, 24, 32)}
    foreign.assert_types(network.rounded)
    expected = foreign.run(model, feed)
    assert expected.std() > 0.01
    found = foreign.run(rewrite.to_deform_conv(network.model), feed)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_mask_that_others_read_stays(tmp_path):
    model = foreign.separate()
    (factor,) = (node for node in model.graph.node if node.op_type == "Mul")
    model.graph.output.append(onnx.helper.make_tensor_value_info(factor.output[0], 1, None))
    folded = rewritten(model, fold)
    assert operators(folded)["Mul"] == 1
    feed = {"x": foreign.picture(1, 3, 16, 16)}
    np.testing.assert_allclose(foreign.run(folded, feed), foreign.run(model, feed), atol=2e-6)


@pytest.mark.parametrize("kept", ["offset", "modulator"])
def test_convolutions_of_two_precisions_are_not_merged(kept):
    network = lowering.make(foreign.separate(), "fp16", keep_fp32=[kept])
    assert "packed_offset_mask" not in foreign.attributes(network.model)[0]
    both = lowering.make(foreign.separate(), "fp16", keep_fp32=["offset", "modulator"])
    assert foreign.attributes(both.model)[0]["packed_offset_mask"] == 1


def test_a_graph_without_any_of_it_stays_as_it_is():
    model = foreign.flow()
    assert rewritten(model, fold) == rewritten(model)


def test_a_shared_weight_is_repacked_once(capfd):
    network = lowering.make(foreign.shared(), "fp16")
    nodes = [node for node in network.model.graph.node if node.op_type == "DCNv2"]
    weights = {node.input[2] for node in nodes}
    assert (len(nodes), len(weights)) == (3, 1)
    assert [each.name for each in network.model.graph.initializer].count(*weights) == 1
    assert "distinct tensors" not in "".join(capfd.readouterr())


def test_weights_that_a_norm_brings_into_range_are_folded_first():
    model = foreign.separate(scale=1e6)
    network = lowering.make(model, "fp16")
    feed = {"x": foreign.picture(1, 3, 32, 32)}
    expected, found = foreign.run(model, feed), foreign.run(network.rounded, feed)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 5e-3


@pytest.mark.parametrize("scale", [1e6, 1e-9])
def test_weights_that_fp16_does_not_hold_are_refused_by_name(scale):
    model = foreign.separate(scale=scale)
    (norm,) = (node for node in model.graph.node if node.op_type == "BatchNormalization")
    norm.op_type = "InstanceNormalization"  # whose factors depend on the picture: nothing can be folded
    del norm.input[3:]
    (factors,) = (each for each in model.graph.initializer if each.name == norm.input[1])
    factors.CopyFrom(onnx.numpy_helper.from_array(np.ones(16, np.float32), norm.input[1]))
    with pytest.raises(PrecisionError, match=r"^theirs: found .* of this DeformConv.*--keep-fp32 'theirs'"):
        lowering.make(model, "fp16")
    network = lowering.make(model, "fp16", keep_fp32=["the?rs", "Batch*"])
    feed = {"x": foreign.picture(1, 3, 32, 32)}
    expected, found = foreign.run(model, feed), foreign.run(network.rounded, feed)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 5e-3


def test_a_bound_beyond_fp16_is_no_bound():
    g = foreign.Graph()
    x = g.conv("x", 3, 8)
    x = g.add("Clip", [x, g.constant(np.float32(0)), g.constant(np.float32(3e38))])
    model = g.model(g.conv(x, 8, 4))
    assert operators(rewritten(model, precision.to_fp16))["Clip"] == 1


def test_a_pattern_that_fits_no_node():
    with pytest.raises(PrecisionError, match=r"--keep-fp32 backbone\*: found no node .* one of 11 nodes: "):
        lowering.make(foreign.separate(), "fp16", keep_fp32=["backbone*"])


def types(model, op):
    """Of the inputs of each node of an operator."""
    typed = {}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        typed[value.name] = value.type.tensor_type.elem_type
    typed |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return [[typed[name] for name in node.input if name] for node in model.graph.node if node.op_type == op]


HALF, SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def test_grids_stay_fp32():
    network = lowering.make(foreign.flow(), "fp16")
    assert types(network.rounded, "GridSample") == [[SINGLE, SINGLE]]
    assert types(network.rounded, "Mul") == [[SINGLE, SINGLE]]
    assert [row[0] for row in types(network.rounded, "Conv")] == [HALF] * 5
    exact = lowering.make(foreign.flow(), "fp16", fp32_offsets=True)
    assert [row[0] for row in types(exact.rounded, "Conv")] == [HALF, SINGLE, HALF, HALF, HALF]


def test_int8_places_no_sample():
    model = foreign.flow()
    feed = {"x": foreign.picture(1, 3, 32, 48)}
    rounded = lowering.make(model, "int8", [feed]).rounded
    producers = {name: node for node in rounded.graph.node for name in node.output}
    (transpose,) = (node for node in rounded.graph.node if node.op_type == "Transpose")
    source = producers[transpose.input[0]]
    while source.op_type == "Cast":
        source = producers[source.input[0]]
    assert source.name == "flow"
    reads = {
        node.name: producers[node.input[0]].op_type for node in rounded.graph.node if node.op_type == "Conv"
    }
    assert reads["joined"] != "DequantizeLinear", "features and positions have no common scale"
    assert reads["flow"] == reads["context"] == "DequantizeLinear"


@pytest.mark.parametrize("op", ["BatchNormalization", "affine"])
def test_a_bias_is_folded_too(op):
    g = foreign.Graph()
    x = g.conv("x", 3, 8)
    bias = g.constant(np.arange(4, dtype=np.float32) - 2)
    y = g.add("DeformConv", [x, g.weight(4, 8, 3, 3), g.conv(x, 8, 18), bias], pads=[1] * 4)
    if op == "affine":  # as a frozen BatchNorm is exported
        y = g.add("Mul", [g.constant(np.float32([1, 2, 3, -4]).reshape(1, 4, 1, 1)), y])
        y = g.add("Add", [y, g.constant(np.float32([3, 2, 1, 0]).reshape(4, 1, 1))])
    else:
        y = g.norm(y, 4)
    model = g.model(g.conv(y, 4, 2))
    folded = rewritten(model, fold)
    assert operators(folded) == {"Conv": 3, "DeformConv": 1}
    feed = {"x": foreign.picture(2, 3, 10, 12)}
    np.testing.assert_allclose(foreign.run(folded, feed), foreign.run(model, feed), atol=1e-5)


def test_another_axis_is_no_channel():
    g = foreign.Graph()
    x = g.conv("x", 3, 4)
    y = g.add("DeformConv", [x, g.weight(4, 4, 3, 3), g.conv(x, 4, 18)], pads=[1] * 4, kernel_shape=[3, 3])
    y = g.add("Mul", [y, g.constant(np.float32([1, 2, 3, 4]))])
    model = g.model(g.conv(y, 4, 2))
    assert rewritten(model, fold) == rewritten(model)


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_offsets_in_fp32_and_the_rest_in_fp16(name):
    model = foreign.separate()
    feed = {"x": foreign.picture(2, 3, 32, 32)}
    network = lowering.make(model, name, [feed], fp32_offsets=True)
    foreign.assert_types(network.rounded)
    (node,) = (node for node in network.model.graph.node if node.op_type == "DCNv2")
    (attributes,) = foreign.attributes(network.model)
    assert attributes["relu"] == attributes["packed_offset_mask"] == 1
    constants = {tensor.name: tensor.data_type for tensor in network.model.graph.initializer}
    assert constants[node.input[2]] == (HALF if name == "fp16" else onnx.TensorProto.INT8)
    (offset,) = (each for each in network.model.graph.node if node.input[1] in each.output)
    assert (offset.op_type, offset.name) == ("Conv", "offset")
    assert constants[offset.input[1]] == SINGLE
    expected, found = foreign.run(model, feed), foreign.run(network.rounded, feed)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < {"fp16": 3e-3, "int8": 0.05}[name]
