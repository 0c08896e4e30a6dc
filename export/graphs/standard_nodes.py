"""DCNv2 nodes, with all their attributes, as standard operators."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import version_converter

from export.errors import one_line
from export.graphs.soundness import ELSEWHERE, set_apart
from export.graphs.surgery import (
    DEFORM_CONV_OPSET,
    RewriteError,
    kernel_size,
    nodes_of,
    pair,
    unpack,
    weight_index,
)


def to_deform_conv(graph: gs.Graph) -> None:
    """Rewrites DCNv2 nodes, and adds what their attributes stand for.

    Raises:
        RewriteError: one has another number of inputs than its attributes ask for, or its weights are inputs.
    """
    for node in list(graph.nodes):
        if node.op == "DCNv2":
            _rewrite(graph, node)


def _rewrite(graph: gs.Graph, node: gs.Node) -> None:
    attrs = node.attrs
    packed, quantized = (attrs.get(name, 0) for name in ("packed_offset_mask", "quantized"))
    count = (4 if packed else 5) + quantized
    if len(node.inputs) != count:
        raise RewriteError(
            f"{node.name}: found {len(node.inputs)} inputs, expected {count} with "
            f"packed_offset_mask {packed} and quantized {quantized}"
        )
    if quantized:
        _dequantize(graph, node)
    height, width = kernel_size(node)
    data, offset, *mask, weight, bias = node.inputs
    channels = attrs.get("deformable_group", 1) * height * width
    if packed:
        offset, *mask = unpack(graph, node.name, offset, channels)
    if attrs.get("weight_ohwi"):
        if not isinstance(weight, gs.Constant):
            raise RewriteError(f"{node.name}: weight_ohwi is set, expected a constant weight, found an input")
        values = np.ascontiguousarray(weight.values.transpose(0, 3, 1, 2))
        weight = gs.Constant(f"{node.name}/oihw", values)
    if attrs.get("relu"):
        linear = gs.Variable(f"{node.name}/linear", node.outputs[0].dtype)
        graph.nodes.append(gs.Node("Relu", f"{node.name}/Relu", {}, [linear], list(node.outputs)))
        node.outputs = [linear]
    padding = pair(attrs.get("padding", 0))
    node.op = "DeformConv"
    node.domain = None
    node.inputs = [data, weight, offset, bias, mask[0]]
    node.attrs = {
        "kernel_shape": [height, width],
        "strides": list(pair(attrs.get("stride", 1))),
        "pads": [*padding, *padding],
        "dilations": list(pair(attrs.get("dilation", 1))),
        "group": attrs.get("groups", 1),
        "offset_group": attrs.get("deformable_group", 1),
    }


def _dequantize(graph: gs.Graph, node: gs.Node) -> None:
    """The same node without `quantized`, weights at most 1 as FP16 likes them."""
    index = weight_index(node)
    weight, bias, scale = node.inputs[index:]
    if not all(isinstance(tensor, gs.Constant) for tensor in (weight, bias, scale)):
        raise RewriteError(f"{node.name}: quantized is set, expected constant weight, bias and scale")
    dtype = np.dtype(node.inputs[1].dtype or np.float32)
    values = weight.values.astype(np.float32) * scale.values.reshape(-1, 1, 1, 1)
    unit = max(float(np.abs(values).max()), 2.0**-20)
    one, units = (gs.Constant(f"{node.name}/{size}", np.asarray(size, dtype)) for size in (1, unit))
    zero = gs.Constant(f"{node.name}/zero", np.zeros((), np.int8))
    data = gs.Variable(f"{node.name}/data", dtype, node.inputs[0].shape)
    graph.nodes.append(
        gs.Node("DequantizeLinear", f"{node.name}/DQ", {}, [node.inputs[0], units, zero], [data])
    )
    node.inputs = [
        data,
        *node.inputs[1:index],
        gs.Constant(f"{node.name}/weight", (values / unit).astype(dtype)),
        gs.Constant(f"{node.name}/bias", bias.values.astype(dtype)),
    ]
    if node.attrs.get("quantized_output"):
        wide = gs.Variable(f"{node.name}/wide", dtype)
        graph.nodes.append(
            gs.Node("QuantizeLinear", f"{node.name}/Q", {}, [wide, one, zero], list(node.outputs))
        )
        node.outputs = [wide]


def raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an opset that has DeformConv: its own, if that is new enough.

    Raises:
        RewriteError: ONNX's converter does not know how.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if opset >= DEFORM_CONV_OPSET:
        return model
    # The converter refuses an operator that it does not know, unless its domain is somebody else's.
    foreign = onnx.ModelProto()
    foreign.CopyFrom(model)
    domains = set_apart(foreign)
    try:
        converted = version_converter.convert_version(foreign, DEFORM_CONV_OPSET)
    except RuntimeError as error:
        raise RewriteError(
            f"found opset {opset}, which ONNX cannot convert to {DEFORM_CONV_OPSET}, DeformConv's "
            f"first ({one_line(error)}): export the model with opset {DEFORM_CONV_OPSET}"
        ) from None
    for node in nodes_of(converted.graph.node):
        if node.domain == ELSEWHERE:
            node.domain = domains[tuple(node.output)]
    for index, entry in enumerate(converted.opset_import):
        if entry.domain == ELSEWHERE:
            del converted.opset_import[index]
            break
    return converted
