"""Where samples are taken, in FP32: the grids of GridSample, and on request the offsets of DeformConv."""

from collections.abc import Callable, Iterable

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from export.graphs.surgery import CONVOLUTIONS, neighbours

_ALWAYS_FULL = ("GridSample", "RoiAlign", "NonMaxSuppression")
"""They read coordinates; TensorRT wants GridSample's two inputs of one type."""


def in_fp32(graph: gs.Graph, *, with_convolutions: bool) -> set[int]:
    """Ids of the nodes that stay FP32 whatever the precision.

    Args:
        graph: the network.
        with_convolutions: also the convolutions that predict offsets, masks and grids, and all between.
    """
    found = {id(node) for node in graph.nodes if node.op in _ALWAYS_FULL}
    for node in graph.nodes:
        if node.op == "GridSample":
            found |= _behind_convolutions(node.inputs[1:2], inclusive=with_convolutions)
        elif node.op == "DeformConv" and with_convolutions:
            found |= _behind_convolutions([node.inputs[2], *node.inputs[4:5]], inclusive=True)
    return found


def between_offsets(graph: gs.Graph) -> set[int]:
    """Ids of what stands between a DeformConv and the convolutions that predict its offset and mask."""
    nodes = [node for node in graph.nodes if node.op == "DeformConv"]
    return _behind_convolutions(
        [t for node in nodes for t in (node.inputs[2], *node.inputs[4:5])], inclusive=False
    )


def _behind_convolutions(tensors: Iterable[gs.Tensor], *, inclusive: bool) -> set[int]:
    """Ids of what computes `tensors`, back to the convolutions."""
    found: set[int] = set()
    pending = [producer for tensor in tensors for producer in tensor.inputs]
    while pending:
        node = pending.pop()
        if id(node) in found or (node.op in CONVOLUTIONS and not inclusive):
            continue
        found.add(id(node))
        if node.op not in CONVOLUTIONS:
            pending += neighbours(node, backward=True)
    return found


def round_around(
    graph: gs.Graph, half: set[int], *, weights: Callable[[gs.Node, int], np.ndarray]
) -> set[int]:
    """Makes the DeformConv nodes of `half` FP32 ones that compute with what FP16 holds.

    ONNX wants all inputs of one type, so data and output are rounded by casts, and weights in place. DCNv2
    takes FP16 with FP32 offsets: `rewrite.to_dcnv2` recognises the casts. Data that INT8 holds is rounded
    already.

    Args:
        graph: the network, FP32.
        half: ids of the nodes that are to compute in FP16.
        weights: of a node and the index of a constant input: its values in FP16.

    Returns:
        Ids of the nodes that are FP32 now.
    """
    full: set[int] = set()
    for node in [node for node in graph.nodes if node.op == "DeformConv" and id(node) in half]:
        full.add(id(node))
        producers = {index: (node.inputs[index].inputs or [None])[0] for index in (0, 1)}
        quantized = all(each is not None and each.op == "DequantizeLinear" for each in producers.values())
        if quantized:
            for index in (0, 1):
                node.inputs[index] = _own_dequantize(graph, node, producers[index], index)
                full.add(id(node.inputs[index].inputs[0]))
            # Its output is of the offsets' type, and a ReLU behind it a part of the node.
            full |= {id(reader) for reader in node.outputs[0].outputs if reader.op == "Relu"}
            continue
        node.inputs[0] = _rounded(graph, node.inputs[0], f"{node.name}/data", full)
        for index in (1, 3):
            tensor = node.inputs[index] if index < len(node.inputs) else None
            if isinstance(tensor, gs.Constant) and not tensor.is_empty():
                values = weights(node, index).astype(np.float32)
                node.inputs[index] = gs.Constant(f"{node.name}/rounded_{index}", values)
        (output,) = node.outputs
        exact = gs.Variable(f"{node.name}/exact", np.float32, output.shape)
        node.outputs = [exact]
        rounded = _rounded(graph, exact, f"{node.name}/output", full)
        rounded.inputs[0].outputs = [output]
    return full


def _rounded(graph: gs.Graph, tensor: gs.Tensor, name: str, full: set[int]) -> gs.Variable:
    narrow = gs.Variable(f"{name}/fp16", np.float16, tensor.shape)
    wide = gs.Variable(f"{name}/fp32", np.float32, tensor.shape)
    casts = [
        gs.Node("Cast", f"{name}/to_fp16", {"to": TensorProto.FLOAT16}, [tensor], [narrow]),
        gs.Node("Cast", f"{name}/to_fp32", {"to": TensorProto.FLOAT}, [narrow], [wide]),
    ]
    graph.nodes += casts
    full.update(map(id, casts))
    return wide


def _own_dequantize(graph: gs.Graph, node: gs.Node, shared: gs.Node, index: int) -> gs.Variable:
    """Its own, since those of one that others share may be FP16."""
    wide = gs.Variable(f"{node.name}/dequantized_{index}", np.float32, node.inputs[index].shape)
    narrow, scale, *zero = shared.inputs
    if index == 0:  # what quantizes the data has its scale in FP16
        scale = gs.Constant(f"{node.name}/data_scale", scale.values.astype(np.float16).astype(np.float32))
    inputs = [narrow, scale, *zero]
    graph.nodes.append(
        gs.Node("DequantizeLinear", f"{node.name}/DQ_{index}", dict(shared.attrs), inputs, [wide])
    )
    return wide
