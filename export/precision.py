"""Puts the precision into the graph: FP16 by casts, INT8 by Q/DQ pairs.

TensorRT builds the result strongly typed, and ONNX Runtime runs it on the CPU, so that the accuracy of a
precision can be studied without a GPU.
"""

import tempfile
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from export.errors import ExportError
from export.rewrite import export_graph, import_graph

CONVOLUTIONS = ("Conv", "ConvTranspose", "DeformConv", "DCNv2", "Gemm", "MatMul")
"""Operators whose arithmetic is worth a lower precision."""

GROUPS = ("stem", "backbone", "offsets", "heads", "outputs")
"""Groups of plain convolutions; see `layer_groups`."""

QUANTIZED_GROUPS = ("backbone", "heads")
"""What INT8 quantizes by default.

Left alone: the stem (three channels: little to gain), the offset convolutions (an error moves the sampling
points), the outputs (rounding makes several peaks of one in the heat map: several boxes of one object),
transposed and deformable convolutions. The figures are in docs/accuracy.md.
"""

_HALF_MAX = float(np.finfo(np.float16).max)
_MIN_SCALE = 2.0**-20
# Inputs that stay FP32 whatever the data is: the regions and scales of Resize.
_ALWAYS_FULL = {"Resize": (1, 2)}


class PrecisionError(ExportError):
    """A graph that cannot be converted; the message says where and why."""


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes everything between the first and the last convolution in FP16.

    What lies before (normalising the frame) and behind (sigmoid, peaks, boxes) stays FP32, as do the model's
    inputs and outputs. Q/DQ pairs in between get FP16 scales, so layers that INT8 leaves alone run in FP16.

    Raises:
        PrecisionError: a node in between holds a subgraph, or a tensor's type is unknown.
    """
    graph = _import(model)
    half = _between_convolutions(graph)
    half |= _constant_branches(graph, half)
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
                narrowed[id(tensor)] = _narrow(graph, tensor, is_scale=_is_scale(node, index))
            node.inputs[index] = narrowed[id(tensor)]
    for node in [node for node in graph.nodes if id(node) in half]:
        for index, tensor in enumerate(node.outputs):
            if tensor.dtype == np.float32:
                _widen_for_others(graph, node, index, half=half, is_output=id(tensor) in outputs)
        if node.op == "Cast" and node.attrs["to"] == TensorProto.FLOAT:
            node.attrs["to"] = TensorProto.FLOAT16
        if node.op == "ConstantOfShape" and node.outputs[0].dtype == np.float16:
            value = node.attrs.get("value")
            values = np.zeros(1) if value is None else _clip(value.values)
            node.attrs["value"] = gs.Constant(f"{node.name}/value", np.asarray(values, np.float16))
    return _export(graph, model)


def layer_groups(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Names of the model's plain convolutions by what they do, read off the graph's structure.

    stem: no convolution comes before. offsets: the next convolution is deformable and reads them as offset or
    mask. outputs: no convolution comes behind. heads: only outputs come behind. backbone: the rest.
    """
    graph = _import(model)
    before = {
        id(node): _next_convolutions(node, backward=True) for node in graph.nodes if node.op in CONVOLUTIONS
    }
    behind = {id(node): _next_convolutions(node) for node in graph.nodes if node.op in CONVOLUTIONS}
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for node in graph.nodes:
        if node.op != "Conv":
            continue
        following = behind[id(node)]
        if not following:
            group = "outputs"
        elif any(node in _offset_sources(deformable) for deformable in following):
            group = "offsets"
        elif not before[id(node)]:
            group = "stem"
        elif all(not behind[id(other)] for other in following):
            group = "heads"
        else:
            group = "backbone"
        groups[group].append(node.name)
    return groups


def to_int8(
    model: onnx.ModelProto,
    feeds: Iterable[dict[str, np.ndarray]],
    *,
    groups: Collection[str] = QUANTIZED_GROUPS,
    nodes: Collection[str] | None = None,
    method: CalibrationMethod = CalibrationMethod.MinMax,
) -> onnx.ModelProto:
    """Quantizes convolutions to INT8 by Q/DQ pairs; everything else stays as it is.

    Symmetric, per output channel for weights, per tensor for activations: the only kind TensorRT knows.

    Args:
        model: FP32, with DeformConv nodes (the calibration runs in ONNX Runtime).
        feeds: the model's inputs, one dict per picture, to observe the range of the activations.
        groups: which of `layer_groups` to quantize.
        nodes: names of the convolutions to quantize, in place of `groups`.
        method: how a range is chosen from the values seen.

    Raises:
        PrecisionError: there is nothing to quantize or no picture to calibrate with.
    """
    model = _export(_import(model), model)
    if nodes is None:
        layers = layer_groups(model)
        nodes = [name for group in groups for name in layers[group]]
    if not nodes:
        raise PrecisionError(f"found no convolution to quantize in {', '.join(groups)}")
    feeds = iter(feeds)
    first = next(feeds, None)
    if first is None:
        raise PrecisionError("found no picture to calibrate with")
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    add_pre_process_metadata(prepared)  # shapes are inferred, which is all that the quantizer wants done
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        quantize_static(
            prepared,
            path,
            _Feeds(chain([first], feeds)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(nodes),
            calibrate_method=method,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                # TensorRT fuses Q/DQ into the layer only if the weights are still there in front of them.
                "AddQDQPairToWeight": True,
                "QuantizeBias": False,
                # Else the histograms of all pictures are held at once.
                "CalibMaxIntermediateOutputs": 8,
            },
        )
        quantized = onnx.load(path)
    return _export(_quantize_skips(_import(quantized)), model)


class _Feeds(CalibrationDataReader):
    def __init__(self, feeds: Iterable[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _import(model: onnx.ModelProto) -> gs.Graph:
    return import_graph(onnx.shape_inference.infer_shapes(model))


def _export(graph: gs.Graph, model: onnx.ModelProto) -> onnx.ModelProto:
    converted = export_graph(graph, model)
    # Shapes and types of the inner tensors were those of the model before.
    del converted.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(converted)


def _between_convolutions(graph: gs.Graph) -> set[int]:
    def reach(nodes: Iterable[gs.Node], *, backward: bool) -> set[int]:
        reached: set[int] = set()
        for node in nodes:
            neighbours = (
                (node.i(n) for n in range(len(node.inputs)) if node.inputs[n].inputs) if backward else ()
            )
            if not backward:
                neighbours = (consumer for tensor in node.outputs for consumer in tensor.outputs)
            if node.op in CONVOLUTIONS or any(id(neighbour) in reached for neighbour in neighbours):
                reached.add(id(node))
        return reached

    return reach(graph.nodes, backward=True) & reach(reversed(graph.nodes), backward=False)


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
        consumers = [consumer for tensor in node.outputs for consumer in tensor.outputs]
        if id(node) in constant and all(id(consumer) in half | branches for consumer in consumers):
            branches.add(id(node))
    return branches


def _is_scale(node: gs.Node, index: int) -> bool:
    return node.op in ("QuantizeLinear", "DequantizeLinear") and index == 1


def _clip(values: np.ndarray) -> np.ndarray:
    return np.clip(np.asarray(values), -_HALF_MAX, _HALF_MAX)


def _narrow(graph: gs.Graph, tensor: gs.Tensor, *, is_scale: bool) -> gs.Tensor:
    if isinstance(tensor, gs.Constant):
        values = _clip(tensor.values)
        if is_scale:  # FP16 would round a tiny one to zero, and the division by it to infinity
            values = np.maximum(values, _MIN_SCALE)
        return gs.Constant(f"{tensor.name}/fp16", np.asarray(values, np.float16))
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


def _next_convolutions(node: gs.Node, *, backward: bool = False) -> list[gs.Node]:
    """The convolutions that are reached from `node` with none in between."""
    found: list[gs.Node] = []
    seen: set[int] = set()
    pending = list(_neighbours(node, backward=backward))
    while pending:
        other = pending.pop()
        if id(other) in seen:
            continue
        seen.add(id(other))
        if other.op in CONVOLUTIONS:
            found.append(other)
        else:
            pending.extend(_neighbours(other, backward=backward))
    return found


def _neighbours(node: gs.Node, *, backward: bool) -> Iterator[gs.Node]:
    for tensor in node.inputs if backward else node.outputs:
        yield from tensor.inputs if backward else tensor.outputs


def _offset_sources(node: gs.Node) -> list[gs.Node]:
    if node.op != "DeformConv":
        return []
    sources = []
    for tensor in [node.inputs[2], *node.inputs[4:]]:
        for producer in tensor.inputs:
            sources += (
                [producer] if producer.op in CONVOLUTIONS else _next_convolutions(producer, backward=True)
            )
    return sources


def _quantize_skips(graph: gs.Graph) -> gs.Graph:
    """Lets a residual sum read its skip branch from the Q/DQ pair that is there for a convolution anyway.

    TensorRT then fuses the sum into the convolution of the other branch, and the skip travels as INT8.
    """
    for node in graph.nodes:
        if node.op != "Add":
            continue
        for index, tensor in enumerate(node.inputs):
            pairs = [
                consumer.outputs[0].outputs[0].outputs[0]
                for consumer in tensor.outputs
                if consumer.op == "QuantizeLinear" and consumer.outputs[0].outputs
            ]
            other = node.inputs[1 - index]
            if pairs and other.inputs and other.inputs[0].op in CONVOLUTIONS:
                node.inputs[index] = pairs[0]
                break
    return graph
