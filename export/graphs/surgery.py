"""ONNX graphs as GraphSurgeon's, and what is asked of their nodes."""

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from export.errors import ExportError

DEFORM_CONV_OPSET = 19
"""The first opset with DeformConv."""


CONVOLUTIONS = ("Conv", "ConvTranspose", "DeformConv", "DCNv2", "Gemm", "MatMul")
"""Operators whose arithmetic is worth a lower precision."""


class RewriteError(ExportError):
    """A graph that cannot be rewritten; the message names the node, what was found and what was expected."""


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """The model as a sorted graph: every node has a name, and what Constant nodes hold are constants."""
    graph = gs.import_onnx(model)
    graph.toposort()
    for index, node in enumerate(graph.nodes):
        node.name = node.name or f"{node.op}_{index}"
    for node in [node for node in graph.nodes if node.op == "Constant"]:
        (output,) = node.outputs
        if "value" in node.attrs and not any(output is tensor for tensor in graph.outputs):
            node.outputs.clear()
            output.to_constant(np.asarray(node.attrs["value"].values))
    return graph


def kernel_size(node: gs.Node) -> tuple[int, int]:
    """Kernel height and width of a DeformConv or DCNv2 node.

    Raises:
        RewriteError: neither the attribute nor the weight's shape says it.
    """
    if "kernel_shape" in node.attrs:
        height, width = node.attrs["kernel_shape"]
        return height, width
    weight = node.inputs[weight_index(node)]
    if not weight.shape or any(not isinstance(side, int) for side in weight.shape[1:]):
        raise RewriteError(
            f"{node.name}: found a weight of shape {weight.shape}, expected a known kernel size: "
            "export the model with constant weights"
        )
    sides = weight.shape[1:3] if node.attrs.get("weight_ohwi") else weight.shape[2:4]
    return sides[0], sides[1]


def export_graph(graph: gs.Graph, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model of a graph, with IR version and metadata of the model that the graph came from."""
    graph.cleanup().toposort()
    rewritten = gs.export_onnx(graph, do_type_check=False)
    rewritten.ir_version = model.ir_version
    del rewritten.metadata_props[:]
    rewritten.metadata_props.extend(model.metadata_props)
    return rewritten


def weight_index(node: gs.Node) -> int:
    """Which input of a DeformConv or DCNv2 node is its weight."""
    if node.op == "DeformConv":
        return 1
    return 2 if node.attrs.get("packed_offset_mask") else 3


def pair(value: Any) -> tuple[int, int]:
    """Height and width of an attribute that may be one number for both."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
