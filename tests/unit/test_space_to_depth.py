"""Stems on half the grid against the same on the whole, in ONNX Runtime."""

from functools import partial

import foreign
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graphs.space_to_depth import fold_stems
from export.graphs.surgery import rewritten
from export.plan import lowering

SEED = 0
DLA = [(16, 7, 1, [3, 3, 3, 3], 1), (16, 3, 1, [1, 1, 1, 1], 1), (32, 3, 2, [1, 1, 1, 1], 1)]
RESNET = [(64, 7, 2, [3, 3, 3, 3], 1)]


def network(layers, *, size=(20, 28), channels=3, sums=(), outputs=()):
    """Convolutions (channels, kernel, stride, pads, dilation), each with a ReLU; those of `sums` are two."""
    rng = np.random.default_rng(SEED)
    nodes, constants, tensor = [], [], "x"
    for index, (count, kernel, stride, pads, dilation) in enumerate(layers):
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        branches = []
        for branch in range(2 if index in sums else 1):
            name = f"{index}_{branch}"
            weight = rng.normal(0, (channels * np.prod(sides)) ** -0.5, (count, channels, *sides))
            constants += [
                numpy_helper.from_array(weight.astype(np.float32), f"weight_{name}"),
                numpy_helper.from_array(rng.normal(0, 1, count).astype(np.float32), f"bias_{name}"),
            ]
            nodes += [
                helper.make_node(
                    "Conv",
                    [tensor, f"weight_{name}", f"bias_{name}"],
                    [f"conv_{name}"],
                    name=f"conv_{name}",
                    strides=[stride, stride],
                    pads=pads,
                    dilations=[dilation, dilation],
                ),
                helper.make_node("Relu", [f"conv_{name}"], [f"relu_{name}"]),
            ]
            branches.append(f"relu_{name}")
        tensor, channels = branches[0], count
        if index in sums:
            tensor = f"sum_{index}"
            nodes.append(helper.make_node("Add", branches, [tensor]))
    body = helper.make_graph(
        nodes,
        "stem",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, *size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (tensor, *outputs)],
        constants,
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def run(model, size=(20, 28)):
    feed = {"x": np.random.default_rng(SEED).normal(0, 1, (2, 3, *size)).astype(np.float32)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def assert_folds(model, size=(20, 28)):
    folded = rewritten(model, fold_stems)
    onnx.checker.check_model(folded, full_check=True)
    assert [node.op_type for node in folded.graph.node].count("SpaceToDepth") == 1
    assert not [
        node
        for node in folded.graph.node
        for each in node.attribute
        if each.name == "strides" and 2 in each.ints
    ]
    expected, found = run(model, size), run(folded, size)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return folded


def test_the_stem_of_dla():
    folded = assert_folds(network(DLA))
    shapes = [tuple(tensor.dims) for tensor in folded.graph.initializer if len(tensor.dims) == 4]
    assert shapes == [(64, 12, 5, 5), (64, 64, 3, 3), (32, 64, 2, 2)]


def test_branches_that_are_summed():
    assert_folds(network(DLA, sums=[0]))


@pytest.mark.parametrize("seed", range(20))
def test_any_geometry(seed):
    rng = np.random.default_rng(seed)
    size = [int(side) for side in 2 * rng.integers(9, 14, 2)]
    layers, sides = [], np.array(size)
    for stride in [1] * int(rng.integers(1, 3)) + [2]:
        kernel, dilation = rng.integers(1, 6, 2), int(rng.integers(1, 3))
        pads = rng.integers(0, 4, (2, 2))
        if stride == 1:  # sizes stay even
            pads[1] += (pads.sum(0) + dilation * (kernel - 1)) % 2
        sides = (sides + pads.sum(0) - dilation * (kernel - 1) - 1) // stride + 1
        channels = int(rng.integers(1, 17))
        layers.append((channels, kernel.tolist(), stride, pads.flatten().tolist(), dilation))
    assert sides.min() > 0
    assert_folds(network(layers, size=size), size)


def left_alone(model, **options):
    return rewritten(model, partial(fold_stems, **options)) == rewritten(model)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (network(DLA, size=("h", "w")), {}),
        (network(DLA, size=(21, 28)), {}),
        (network([(16, 6, 1, [2, 2, 2, 2], 1), *DLA[2:]]), {}),
        (network([(32, 7, 1, [3, 3, 3, 3], 1), *DLA[2:]]), {}),
        (network(DLA[:2]), {}),
        (network(RESNET), {}),
        (network(DLA, outputs=["relu_0_0"]), {}),
        (network(DLA), {"apart": ["conv_1_0"]}),
        (network(DLA), {"apart": ["conv_2_0"]}),
    ],
    ids=["open", "odd", "odd inside", "wide", "no stride", "ResNet", "read by others", "apart", "end apart"],
)
def test_what_is_no_stem_is_left_alone(model, options):
    assert left_alone(model, **options)


@pytest.mark.parametrize(("precision", "channels"), [("fp32", 3), ("tf32", 3), ("fp16", 12), ("int8", 12)])
def test_where_it_was_measured(precision, channels):
    feeds = [{"x": np.random.default_rng(SEED).normal(0, 1, (1, 3, 20, 28)).astype(np.float32)}]
    model = network(DLA)
    made = lowering.make(model, precision, feeds)
    weights = [tensor for tensor in made.rounded.graph.initializer if len(tensor.dims) == 4]
    assert [tensor.dims[1] for tensor in weights][:1] == [channels]
    foreign.assert_types(made.rounded)
    expected, found = run(model), run(made.rounded)
    assert np.linalg.norm(found - expected) <= 0.02 * np.linalg.norm(expected)
