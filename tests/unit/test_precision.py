"""FP16 graphs, run by ONNX Runtime against the FP32 graph that they were made from."""

from collections import Counter

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import traced
from onnx import TensorProto, helper, numpy_helper
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from traced import SIZE, frames, run, to_fp16, types

from export.graphs import torch_export
from export.graphs.surgery import export_graph, import_graph
from export.plan import feed_dicts
from export.verify import against_onnx, peaks


@pytest.fixture(scope="module")
def detector():
    return traced.detector()


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
