"""FP16 and INT8 graphs, run by ONNX Runtime against the FP32 graph that they were made from."""

from collections import Counter
from functools import partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
import traced
from onnx import TensorProto, helper, numpy_helper
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from traced import SIZE, frames

from export.graphs import rewrite, torch_export
from export.graphs.surgery import export_graph, import_graph, rewritten
from export.plan import feed_dicts, precision, quantize
from export.verify import against_onnx, peaks


@pytest.fixture(scope="module")
def detector():
    return traced.detector()


def run(model, feed):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))


def error_db(expected, actual):
    """Energy of the difference relative to that of the signal."""
    assert expected.std() > 0.05, "nothing to compare"
    return 10 * np.log10(max(((expected - actual) ** 2).mean(), 1e-12) / expected.var())


def to_fp16(model, **options):
    return rewritten(model, partial(precision.to_fp16, **options))


def to_int8(model, feeds, **options):
    return rewritten(model, partial(quantize.to_int8, feeds=feeds, **options))


def types(model):
    return {node.name: node.outputs[0].dtype for node in gs.import_onnx(model).nodes}


def test_fp16_is_between_the_first_and_the_last_convolution(detector):
    half = to_fp16(detector)
    for name, dtype in types(half).items():
        if name.startswith("network.") and dtype != np.int64:
            assert dtype == np.float16, name
        if name.startswith("normalise/"):
            assert dtype != np.float16, name
    casts = Counter(node.op_type for node in half.graph.node)["Cast"] - Counter(
        node.op_type for node in detector.graph.node
    ).get("Cast", 0)
    assert casts == 1 + 3 + 3, "one into the network, one behind each head, one behind its best values"
    assert [output.name for output in half.graph.output] == [output.name for output in detector.graph.output]
    assert {output.type.tensor_type.elem_type for output in half.graph.output} == {
        TensorProto.FLOAT,
        TensorProto.INT32,
    }


def test_peaks_are_chosen_in_fp16_and_computed_in_fp32(detector):
    half = to_fp16(detector)
    chosen = {
        node.op
        for node in gs.import_onnx(half).nodes
        if node.name.startswith("decode/") and node.outputs[0].dtype == np.float16
    }
    assert chosen == {"MaxPool", "Where", "Reshape", "ReduceMax", "TopK", "GatherElements"}
    (feed,) = frames(1)
    found = run(half, feed)
    # ONNX Runtime computes the heads in FP32 and takes the rounding out of what it gives of them.
    heads = {name: found[name].astype(np.float16).astype(np.float32) for name in traced.HEADS}
    agreement, _ = peaks.explain(found, peaks.boxes_of(heads), score=1e-6, box_px=1e-4)
    assert (agreement.unmatched, agreement.compared) == (0, 20)


def test_peaks_of_a_head_in_fp32_are_chosen_in_fp32(detector):
    kept = types(to_fp16(detector, keep=["network.hm.2/Conv"]))
    assert (kept["network.hm.2/Conv"], kept["decode/MaxPool"], kept["decode/Where"]) == (np.float32,) * 3
    kept = types(to_fp16(detector, keep=["decode/MaxPool"]))
    assert (kept["network.hm.2/Conv"], kept["decode/MaxPool"]) == (np.float16, np.float32)


@pytest.mark.parametrize(("least", "dtype"), [(-1e4, np.float16), (-1e9, np.float32), (0.1, np.float32)])
def test_a_choice_of_what_fp16_does_not_hold_is_in_fp32(least, dtype):
    """A foreign graph that masks what it found."""
    constants = [
        numpy_helper.from_array(np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1), "w"),
        numpy_helper.from_array(np.float32(least), "least"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Where", ["mask", "a", "least"], ["y"], name="choice"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 4, 4]) for name in "xy"]
    mask = helper.make_tensor_value_info("mask", TensorProto.BOOL, ["n", 1, 4, 4])
    body = helper.make_graph(nodes, "g", [values[0], mask], values[1:], constants)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    half = to_fp16(model)
    assert types(half)["choice"] == dtype
    feed = {"x": np.ones((1, 2, 4, 4), np.float32), "mask": np.arange(16).reshape(1, 1, 4, 4) % 3 > 0}
    np.testing.assert_array_equal(run(half, feed)["y"], run(model, feed)["y"])


def test_fp16_computes_the_same(detector):
    (feed,) = frames(1)
    expected, actual = run(detector, feed), run(to_fp16(detector), feed)
    differences = against_onnx.compare_outputs(expected, actual, against_onnx.TOLERANCES["fp16"])
    assert all(difference.passed for difference in differences), list(map(str, differences))
    assert not np.array_equal(expected["hm"], actual["hm"])


def test_polygraphy_compares_batch_by_batch(detector):
    half, broken = to_fp16(detector), onnx.ModelProto()
    broken.CopyFrom(half)
    weight = next(
        tensor for tensor in broken.graph.initializer if tensor.name.startswith("network.hm.2.weight")
    )
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    feeds = [feed_dicts.noise({"frame": [size, *SIZE, 3]}, {"frame": np.uint8}, seed=size) for size in (1, 3)]

    def compare(model):
        runners = [
            OnnxrtRunner(SessionFromOnnx(one.SerializeToString(), providers=["cpu"]), name=name)
            for name, one in (("expected", detector), ("actual", model))
        ]
        return against_onnx.compare_runners(*runners, feeds, against_onnx.TOLERANCES["fp16"])

    good = compare(half)
    assert [(each.output, each.batch) for each in good] == [
        (output, size) for size in (1, 3) for output in ("detections", "peaks", "hm", "wh", "reg")
    ]
    assert all(difference.passed for difference in good), list(map(str, good))
    assert {each.output for each in compare(broken) if not each.passed} == {"detections", "hm"}


def test_detections_are_compared_with_heads_that_only_the_reference_gives(detector):
    served = torch_export.without_outputs(detector, ["hm", "wh", "reg"])
    (feed,) = frames(1)
    expected = run(against_onnx.with_heads(served), feed)
    assert set(expected) == {"boxes", "scores", "classes", "peaks", "hm", "wh", "reg"}
    actual = run(to_fp16(served), feed)
    assert set(actual) == {"boxes", "scores", "classes", "peaks"}
    rounded = run(against_onnx.with_heads(to_fp16(served)), feed)
    assert {name: rounded[name].dtype for name in traced.HEADS} == dict.fromkeys(traced.HEADS, np.float16)
    difference, same = against_onnx.compare_outputs(expected, actual, against_onnx.TOLERANCES["fp16"])
    assert difference.passed, str(difference)
    assert same.passed
    assert difference.facts["compared"] >= 20
    actual["boxes"] += 4
    difference, _ = against_onnx.compare_outputs(expected, actual, against_onnx.TOLERANCES["fp16"])
    assert not difference.passed


FAULTS = {
    "a transposed kernel": (1, lambda weight: weight.swapaxes(2, 3)),
    "an eighth of the channels missing": (
        1,
        lambda weight: weight * (np.arange(weight.shape[1]) % 8 > 0)[:, None, None],
    ),
}


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("fault", [None, "no mask", *FAULTS])
def test_verification_tells_a_fault_in_one_layer_from_rounding(detector, fault, layer):
    """A right plan is far within the limits, and a wrong one beyond them."""
    exact = torch_export.without_outputs(detector, ["hm", "wh", "reg"])
    made = import_graph(to_fp16(exact))
    node = [node for node in made.nodes if node.op == "DeformConv"][layer]
    if fault == "no mask":
        del node.inputs[4]
    elif fault:
        index, change = FAULTS[fault]
        constant = node.inputs[index]
        node.inputs[index] = gs.Constant("faulty", np.ascontiguousarray(change(constant.values), np.float16))
    (feed,) = frames(1)
    expected = run(against_onnx.with_heads(exact), feed)
    actual = run(export_graph(made), feed)
    tolerance = against_onnx.TOLERANCES["fp16"]
    difference, _ = against_onnx.compare_outputs(expected, actual, tolerance)
    assert difference.passed == (fault is None), str(difference)
    if fault is None:
        assert difference.facts["unmatched"] < tolerance.unmatched / 2


def test_fp16_keeps_what_must_be_fp32():
    """A foreign graph: Resize takes its scales in FP32, a weight beyond FP16's range is clipped."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (2, 2, 1, 1)).astype(np.float32)
    huge = np.full((1, 2, 1, 1), 1e6, np.float32)
    constants = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(huge, "huge"),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
        helper.make_node("Min", ["b", "huge"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["y"]),
    ]
    shape = ["n", 2, 4, 4]
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    half = to_fp16(model)
    kept = {tensor.name: tensor for tensor in half.graph.initializer}
    assert kept["scales"].data_type == TensorProto.FLOAT
    assert numpy_helper.to_array(kept["huge/fp16"]).max() == np.finfo(np.float16).max
    feed = {"x": rng.normal(0, 1, (1, 2, 4, 4)).astype(np.float32)}
    np.testing.assert_allclose(run(half, feed)["y"], run(model, feed)["y"], atol=0.05)


def test_fp16_reaches_constants_that_are_nodes():
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), "weight")
    fill = numpy_helper.from_array(np.full(1, 2.0, np.float32))
    lowest = numpy_helper.from_array(np.float32(-1e9))
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["first"]),
        helper.make_node("Shape", ["first"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["twos"], value=fill),
        helper.make_node("Constant", [], ["lowest"], value=lowest),
        helper.make_node("Add", ["first", "twos"], ["sum"]),
        helper.make_node("Max", ["sum", "lowest"], ["most"]),
        helper.make_node("Conv", ["most", "weight"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 8, 8]) for name in "xy"]
    toy = helper.make_graph(nodes, "toy", values[:1], values[1:], [weight])
    half = to_fp16(helper.make_model(toy, ir_version=10, opset_imports=[helper.make_opsetid("", 19)]))
    feed = {"x": np.random.default_rng(0).normal(0, 1, (2, 4, 8, 8)).astype(np.float32)}
    np.testing.assert_allclose(run(half, feed)["y"], feed["x"] + 2, atol=4e-3)
    assert all(np.isfinite(numpy_helper.to_array(tensor)).all() for tensor in half.graph.initializer)


def test_groups_are_read_off_the_structure(detector):
    groups = quantize.layer_groups(import_graph(detector))
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
def int8(detector):
    return to_int8(detector, frames(3), nodes=quantize.names(import_graph(detector), GROUPS))


def test_int8_quantizes_the_groups_and_nothing_else(detector, int8):
    assert _quantized(int8) == sorted(quantize.names(import_graph(detector), GROUPS))


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


def test_int8_is_near(detector, int8):
    (feed,) = frames(1)
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


def test_int8_of_single_layers(detector):
    name = quantize.layer_groups(import_graph(detector))["backbone"][0]
    assert _quantized(to_int8(detector, frames(1), nodes=[name])) == [name]


def test_int8_needs_pictures(detector):
    with pytest.raises(precision.PrecisionError, match="no picture"):
        to_int8(detector, [])
    with pytest.raises(precision.PrecisionError, match="no convolution to quantize"):
        to_int8(detector, frames(1), nodes=[])


def test_every_form_survives_the_plugin_rewrite(detector, int8):
    (feed,) = frames(1)
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
