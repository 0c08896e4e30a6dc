"""Puts FP16 into the graph, by casts; export/plan/quantize.py puts INT8 there.

TensorRT builds the result strongly typed, and ONNX Runtime runs it on the CPU, so that the accuracy of a
precision can be studied without a GPU.
"""

from collections.abc import Collection, Iterable

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from export.errors import ExportError
from export.graphs.surgery import CONVOLUTIONS, neighbours
from export.plan import positions

_HALF_MAX = float(np.finfo(np.float16).max)
MIN_SCALE = 2.0**-20
"""Least scale of a Q/DQ pair: FP16 would round less to zero, and the division by it to infinity."""
_HALF_TINY = float(np.finfo(np.float16).tiny)
_WEIGHT = {"DCNv2": 3}
_BOUNDS = ("Clip", "Min", "Max")
_CHOOSES = ("MaxPool", "Equal", "Where", "Reshape", "Transpose", "ReduceMax", "TopK", "GatherElements")
# Inputs that stay FP32 whatever the data is: the regions and scales of Resize.
_ALWAYS_FULL = {"Resize": (1, 2)}


class PrecisionError(ExportError):
    """A graph that cannot be converted; the message says where and why."""


def to_fp16(graph: gs.Graph, *, keep: Collection[str] = (), fp32_offsets: bool = False) -> None:
    """Computes everything between the first and the last convolution in FP16.

    What lies before (normalising the frame) and behind (scores, boxes) stays FP32, as do the model's inputs
    and outputs. Behind, too, FP16 values stay FP16 where some are chosen and none computed, as in the search
    for peaks. Q/DQ pairs in between get FP16 scales, so layers that INT8 leaves alone run in FP16.
    GridSample and what becomes of its grid behind the last convolution stay FP32: FP16 would place samples
    1/16 pixel off at 64 to 128.

    Args:
        graph: FP32, standard operators.
        keep: names of nodes that stay FP32.
        fp32_offsets: leaves the convolutions that predict offsets, masks and grids in FP32, too. A DeformConv
            is then FP32 as ONNX wants it, between casts that round to FP16 what the plugin reads in FP16.

    Raises:
        PrecisionError: a node in between holds a subgraph, a tensor's type is unknown, or weights are
            beyond the range of FP16.
    """
    half = _between_convolutions(graph)
    full = positions.in_fp32(graph, with_convolutions=fp32_offsets)
    apart = full | {id(node) for node in graph.nodes if node.name in keep}
    half -= apart
    if fp32_offsets:
        half -= positions.round_around(graph, half, weights=_narrow_weights)
    half |= _choosing(graph, half, apart)
    half |= _constant_branches(graph, half)
    # In front of the first convolution: a cast between them would keep TensorRT from fusing the two.
    half |= {id(node) for node in graph.nodes if node.op == "DequantizeLinear" and _all_read_by(half, node)}
    narrowed: dict[int, gs.Tensor] = {}
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in [node for node in graph.nodes if id(node) in half]:
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            raise PrecisionError(f"{node.name}: a {node.op} with a subgraph cannot be converted to FP16")
        for index, tensor in enumerate(node.inputs):
            if tensor.is_empty() or index in _ALWAYS_FULL.get(node.op, ()):
                continue
            if tensor.dtype is None:
                raise PrecisionError(f"{node.name}: the type of its input {tensor.name} is unknown")
            if tensor.dtype != np.float32 or any(id(producer) in half for producer in tensor.inputs):
                continue
            if id(tensor) not in narrowed:
                narrowed[id(tensor)] = _narrow(graph, tensor, node, index)
            node.inputs[index] = narrowed[id(tensor)]
    for node in [node for node in graph.nodes if id(node) in half]:
        for index, tensor in enumerate(node.outputs):
            if tensor.dtype == np.float32:
                _widen_for_others(graph, node, index, half=half, is_output=id(tensor) in outputs)
        if node.op == "Cast" and node.attrs["to"] == TensorProto.FLOAT:
            node.attrs["to"] = TensorProto.FLOAT16
        if node.op == "ConstantOfShape" and node.outputs[0].dtype == np.float16:
            value = node.attrs.get("value")
            values = np.zeros(1) if value is None else _in_range(value.values, node, 0)
            node.attrs["value"] = gs.Constant(f"{node.name}/value", np.asarray(values, np.float16))


def _between_convolutions(graph: gs.Graph) -> set[int]:
    def reach(nodes: Iterable[gs.Node], *, backward: bool) -> set[int]:
        reached: set[int] = set()
        for node in nodes:
            others = neighbours(node, backward=backward)
            if node.op in CONVOLUTIONS or any(id(other) in reached for other in others):
                reached.add(id(node))
        return reached

    return reach(graph.nodes, backward=True) & reach(reversed(graph.nodes), backward=False)


def _choosing(graph: gs.Graph, half: set[int], apart: set[int]) -> set[int]:
    """Nodes that only pass on values of `half`, and constants that FP16 holds: FP32 is no more exact."""
    chosen: set[int] = set()
    for node in graph.nodes:
        if node.op not in _CHOOSES or id(node) in apart:
            continue
        values = [tensor for tensor in node.inputs if tensor.dtype == np.float32]
        computed = [tensor for tensor in values if not isinstance(tensor, gs.Constant)]
        sources = {id(producer) for tensor in computed for producer in tensor.inputs or [None]}
        exact = all(_is_half(tensor.values) for tensor in values if isinstance(tensor, gs.Constant))
        if sources and sources <= half | chosen and exact:
            chosen.add(id(node))
    return chosen


def _is_half(values: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float16), values, equal_nan=True)


def _all_read_by(nodes: set[int], node: gs.Node) -> bool:
    consumers = list(neighbours(node))
    return bool(consumers) and all(id(consumer) in nodes for consumer in consumers)


def _constant_branches(graph: gs.Graph, half: set[int]) -> set[int]:
    """Nodes that compute from constants alone, for FP16 nodes alone: the Q/DQ pairs of weights."""
    constant: set[int] = set()
    for node in graph.nodes:
        if node.inputs and all(
            isinstance(tensor, gs.Constant) or any(id(producer) in constant for producer in tensor.inputs)
            for tensor in node.inputs
        ):
            constant.add(id(node))
    branches: set[int] = set()
    for node in reversed(graph.nodes):
        if id(node) in constant and all(id(consumer) in half | branches for consumer in neighbours(node)):
            branches.add(id(node))
    return branches


def _is_scale(node: gs.Node, index: int) -> bool:
    return node.op in ("QuantizeLinear", "DequantizeLinear") and index == 1


def _in_range(values: np.ndarray, node: gs.Node, index: int) -> np.ndarray:
    """The values as FP16 holds them.

    Raises:
        PrecisionError: some are finite here and would not be, or weights would be lost.
    """
    values = np.asarray(values)
    if node.op in _BOUNDS:  # no number of FP16 is beyond its largest
        values = np.clip(values, -_HALF_MAX, _HALF_MAX)
    largest = float(np.abs(values[np.isfinite(values)], dtype=np.float64).max(initial=0))
    remedy = f"keep the node in FP32 by --keep-fp32 {node.name!r}, or scale its weights"
    if largest > _HALF_MAX:
        raise PrecisionError(
            f"{node.name}: found values up to {largest:.3g} in input {index} of this {node.op}, expected "
            f"at most {_HALF_MAX:.0f}, FP16's largest: {remedy}"
        )
    if node.op in CONVOLUTIONS and index == _WEIGHT.get(node.op, 1) and 0 < largest < _HALF_TINY:
        raise PrecisionError(
            f"{node.name}: found no weight of this {node.op} beyond {largest:.3g}, expected "
            f"{_HALF_TINY:.3g}, FP16's smallest with all its bits: {remedy}"
        )
    return np.asarray(values, np.float16)


def _narrow_weights(node: gs.Node, index: int) -> np.ndarray:
    return _in_range(node.inputs[index].values, node, index)


def _narrow(graph: gs.Graph, tensor: gs.Tensor, node: gs.Node, index: int) -> gs.Tensor:
    if isinstance(tensor, gs.Constant):
        values = tensor.values
        if _is_scale(node, index):  # FP16 would round a tiny one to zero, and the division by it to infinity
            values = np.maximum(values, MIN_SCALE)
        return gs.Constant(f"{tensor.name}/fp16", _in_range(values, node, index))
    narrow = gs.Variable(f"{tensor.name}/fp16", np.float16, tensor.shape)
    cast = gs.Node("Cast", f"{tensor.name}/to_fp16", {"to": TensorProto.FLOAT16}, [tensor], [narrow])
    graph.nodes.append(cast)
    return narrow


def _widen_for_others(graph: gs.Graph, node: gs.Node, index: int, *, half: set[int], is_output: bool) -> None:
    tensor = node.outputs[index]
    others = [consumer for consumer in tensor.outputs if id(consumer) not in half]
    if not is_output and not others:
        tensor.dtype = np.float16
        return
    # The FP32 tensor keeps its name: it may be one of the model's outputs.
    narrow = gs.Variable(f"{tensor.name}/fp16", np.float16, tensor.shape)
    node.outputs[index] = narrow
    for consumer in list(tensor.outputs):
        if id(consumer) in half:
            for position, used in enumerate(consumer.inputs):
                if used is tensor:
                    consumer.inputs[position] = narrow
    cast = gs.Node("Cast", f"{tensor.name}/to_fp32", {"to": TensorProto.FLOAT}, [narrow], [tensor])
    graph.nodes.append(cast)
