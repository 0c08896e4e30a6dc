"""Stems on half the grid: what TensorRT computes faster at few channels.

A convolution of 3 or 16 channels leaves most of a tensor core idle. On the grid folded by SpaceToDepth, where
four cells are the channels of one, it has four times as many channels, its weights rearranged between zeros.

Limits of dla_34's at batch 32, 512x512, FP16, in ms: bytes at 3.35 TB/s / products at 990 TFLOP/s with
channels in units of 8; and what an H200 took:

| layer | limit | folded | measured | folded |
|---|---|---|---|---|
| 7x7, 3 to 16 | 0.12 / 0.11 | 0.10 / 0.11 | 0.69 | 0.56 |
| 3x3, 16 to 16 | 0.16 / 0.04 | 0.16 / 0.16 | 0.48 | 0.30 |
| 3x3, 16 to 32, stride 2 | 0.12 / 0.02 | 0.12 / 0.03 | 0.20 | 0.16 |

Folding the frame takes back about 0.1. ResNet's 7x7 of stride 2, which is on half the grid already, went from
0.24 to 0.44: it stays as it is.
"""

from collections.abc import Collection
from itertools import product

import numpy as np
import onnx_graphsurgeon as gs

from export.graphs.surgery import is_output, neighbours

_MOST_CHANNELS = 16
"""Of a layer on the full grid: four times as many fill a tensor core's tile; with more, zeros cost time."""

_MOST_SOURCE_CHANNELS = 4
"""Of what is folded by itself, a picture: more would cost more memory traffic than the stem."""


def fold_stems(graph: gs.Graph, *, apart: Collection[str] = ()) -> None:
    """Puts stems on half the grid, with the same results up to the order of sums.

    A stem begins at pictures, ends at a convolution of stride 2, and holds at least one convolution of
    stride 1, ReLUs and sums of few channels, which nothing else reads. All sizes on its way are even.

    Args:
        graph: FP32, standard operators. One without a stem, or of open sizes, stays as it is.
        apart: names of nodes that compute in FP32, where zeros would cost time.
    """
    nodes = list(graph.nodes)
    folded: dict[int, gs.Variable] = {}
    for index, node in enumerate(nodes):
        if node.name not in apart and _strides(node) == [2, 2]:
            stem = _stem(graph, nodes[: index + 1], apart)
            if stem is not None:
                _fold(graph, stem, folded)


def _strides(node: gs.Node) -> list[int] | None:
    """Of a plain convolution with constant weights and padding that is given; None of anything else."""
    constants = all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:])
    if node.op != "Conv" or not constants or node.inputs[1].values.ndim != 4:
        return None
    if node.attrs.get("group", 1) != 1 or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    return list(node.attrs.get("strides", [1, 1]))


def _stem(graph: gs.Graph, nodes: list[gs.Node], apart: Collection[str]) -> list[gs.Node] | None:
    """The stem that ends at the last of the sorted `nodes`, which comes first; None where there is none."""
    *before, end = nodes
    stem = {id(end): end}
    for node in reversed(before):
        readers = list(neighbours(node))
        if not readers or any(id(reader) not in stem for reader in readers):
            continue
        if not is_output(graph, node.outputs[0]) and _is_inner(node, apart):
            stem[id(node)] = node
    for node in stem.values():
        for tensor in _data(node):
            is_source = not any(id(producer) in stem for producer in tensor.inputs)
            if not _is_even(tensor, _MOST_SOURCE_CHANNELS if is_source else _MOST_CHANNELS):
                return None
    found = list(stem.values())
    return found if any(node.op == "Conv" for node in found[1:]) else None


def _is_inner(node: gs.Node, apart: Collection[str]) -> bool:
    if node.op == "Conv":
        return node.name not in apart and _strides(node) == [1, 1]
    if node.op not in ("Relu", "Add"):
        return False
    shapes = [node.outputs[0].shape, *(tensor.shape for tensor in node.inputs)]
    return all(shape == shapes[0] for shape in shapes) and all(tensor.inputs for tensor in node.inputs)


def _data(node: gs.Node) -> list[gs.Tensor]:
    return node.inputs[:1] if node.op == "Conv" else list(node.inputs)


def _is_even(tensor: gs.Tensor, most_channels: int) -> bool:
    if isinstance(tensor, gs.Constant) or tensor.shape is None or len(tensor.shape) != 4:
        return False
    sizes = tensor.shape[1:]
    if not all(isinstance(size, int) for size in sizes):
        return False
    return sizes[0] <= most_channels and sizes[1] % 2 == sizes[2] % 2 == 0


def _fold(graph: gs.Graph, stem: list[gs.Node], folded: dict[int, gs.Variable]) -> None:
    for node in stem:
        if node.op == "Conv":
            _fold_convolution(node)
    inner = [node.outputs[0] for node in stem[1:]]
    for node in stem:
        for index, tensor in enumerate(_data(node)):
            if not any(tensor is each for each in inner):
                node.inputs[index] = _on_half_grid(graph, tensor, folded)
    for tensor in inner:
        tensor.shape = _half(tensor.shape)


def _half(shape: list) -> list:
    count, channels, height, width = shape
    return [count, 4 * channels, height // 2, width // 2]


def _on_half_grid(graph: gs.Graph, tensor: gs.Tensor, folded: dict[int, gs.Variable]) -> gs.Variable:
    if id(tensor) not in folded:
        name = f"{tensor.name}/SpaceToDepth"
        folded[id(tensor)] = gs.Variable(f"{tensor.name}/folded", tensor.dtype, _half(tensor.shape))
        graph.nodes.append(gs.Node("SpaceToDepth", name, {"blocksize": 2}, [tensor], [folded[id(tensor)]]))
    return folded[id(tensor)]


def _fold_convolution(node: gs.Node) -> None:
    """Rearranges weights and padding; the channels of a folded grid are in SpaceToDepth's order."""
    weight = node.inputs[1].values
    stride = node.attrs.get("strides", [1, 1])[0]
    pads = node.attrs.get("pads", [0, 0, 0, 0])
    dilations = node.attrs.get("dilations", [1, 1])
    phases = range(2 // stride)  # of the output's cells in a folded one
    # By axis, phase and tap: the folded cell it reads, counted from the output's, and which part of that.
    reads = [
        [[divmod(phase - pads[axis] + dilations[axis] * tap, 2) for tap in range(weight.shape[2 + axis])]
         for phase in phases]
        for axis in (0, 1)
    ]  # fmt: skip
    cells = [[cell for taps in phases_of for cell, _ in taps] for phases_of in reads]
    first = [min(each) for each in cells]
    kernel = [max(each) - min(each) + 1 for each in cells]
    outputs, inputs, *sides = weight.shape
    spread = np.zeros((len(phases), len(phases), outputs, 2, 2, inputs, *kernel), weight.dtype)
    for down, right, y, x in product(phases, phases, *map(range, sides)):
        (row, lower), (column, later) = reads[0][down][y], reads[1][right][x]
        spread[down, right, :, lower, later, :, row - first[0], column - first[1]] = weight[:, :, y, x]
    before, after = node.inputs[0].shape[2:], node.outputs[0].shape[2:]
    begin = [-each for each in first]
    end = [after[axis] // len(phases) - before[axis] // 2 + kernel[axis] - 1 - begin[axis] for axis in (0, 1)]
    node.inputs[1] = gs.Constant(f"{node.name}/folded_weight", spread.reshape(-1, 4 * inputs, *kernel))
    if len(node.inputs) > 2 and stride == 1:
        node.inputs[2] = gs.Constant(f"{node.name}/folded_bias", np.tile(node.inputs[2].values, 4))
    node.attrs |= {"kernel_shape": kernel, "strides": [1, 1], "dilations": [1, 1], "pads": [*begin, *end]}
