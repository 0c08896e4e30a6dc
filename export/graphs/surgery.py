"""ONNX graphs as GraphSurgeon's, passes over them, and what is asked of their nodes.

A pass changes a graph in place, and gives the tensors that it makes or changes their types and shapes: the
next one reads them. All passes share one graph, which is imported and exported once.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from export.errors import ExportError

Pass = Callable[[gs.Graph], None]

DEFORM_CONV_OPSET = 19
"""The first opset with DeformConv."""


CONVOLUTIONS = ("Conv", "ConvTranspose", "DeformConv", "DCNv2", "Gemm", "MatMul")
"""Operators whose arithmetic is worth a lower precision."""


class RewriteError(ExportError):
    """A graph that cannot be rewritten; the message names the node, what was found and what was expected."""


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """The model as a sorted graph whose tensors know their types and shapes.

    Every node has a name, and what Constant nodes hold are constants.
    """
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    graph.metadata_props = model.metadata_props
    graph.toposort()
    for index, node in enumerate(graph.nodes):
        node.name = node.name or f"{node.op}_{index}"
    for node in [node for node in graph.nodes if node.op == "Constant"]:
        (output,) = node.outputs
        if "value" in node.attrs and not is_output(graph, output):
            node.outputs.clear()
            output.to_constant(np.asarray(node.attrs["value"].values))
    return graph


def nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and those within them (of If, Loop and Scan)."""
    for node in nodes:
        yield node
        for graph in inner_graphs(node):
            yield from nodes_of(graph.node)


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """What a node runs, if it is control flow."""
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and those within its nodes."""
    yield graph
    for node in nodes_of(graph.node):
        yield from inner_graphs(node)


def neighbours(node: gs.Node, *, backward: bool = False) -> Iterator[gs.Node]:
    """Who reads what a node computes; backward, who computes what it reads."""
    for tensor in node.inputs if backward else node.outputs:
        yield from tensor.inputs if backward else tensor.outputs


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether a tensor is one of the model's outputs."""
    return any(tensor is output for output in graph.outputs)


def only_reader(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """Who alone reads a tensor, and once; None where it is an output of the model, too."""
    return tensor.outputs[0] if len(tensor.outputs) == 1 and not is_output(graph, tensor) else None


def unpack(graph: gs.Graph, name: str, packed: gs.Tensor, channels: int) -> tuple[gs.Variable, gs.Variable]:
    """Offset and mask of a tensor that holds both: the mask's `channels` come last, before their sigmoid."""
    parts = ("offset", "logits", "mask")
    offset, logits, mask = (gs.Variable(f"{name}/{part}", packed.dtype) for part in parts)
    sizes = gs.Constant(f"{name}/split", np.array([2 * channels, channels], np.int64))
    graph.nodes += [
        gs.Node("Split", f"{name}/Split", {"axis": 1}, [packed, sizes], [offset, logits]),
        gs.Node("Sigmoid", f"{name}/Sigmoid", {}, [logits], [mask]),
    ]
    return offset, mask


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


def apply(graph: gs.Graph, *passes: Pass) -> None:
    """Runs passes one after the other, each on a sorted graph without unused nodes."""
    for each in passes:
        each(graph)
        graph.cleanup().toposort()


def export_graph(graph: gs.Graph) -> onnx.ModelProto:
    """The model of a graph, with the metadata of the model that the graph came from."""
    model = gs.export_onnx(graph, do_type_check=False)
    model.metadata_props.extend(graph.metadata_props)
    return model


def rewritten(model: onnx.ModelProto, *passes: Pass) -> onnx.ModelProto:
    """The model after some passes."""
    graph = import_graph(model)
    apply(graph, *passes)
    return export_graph(graph)


def infer_types(graph: gs.Graph, exported: onnx.ModelProto) -> None:
    """Gives the graph's tensors the types and shapes that follow in the model just exported from it.

    Needed only behind nodes that were not ONNX's at import.
    """
    tensors = graph.tensors()
    inferred = onnx.shape_inference.infer_shapes(exported).graph
    for info in (*inferred.value_info, *inferred.output):
        found, tensor = OnnxImporter.import_tensor(info), tensors[info.name]
        if isinstance(tensor, gs.Variable):
            tensor.dtype, tensor.shape = found.dtype, found.shape


def weight_index(node: gs.Node) -> int:
    """Which input of a DeformConv or DCNv2 node is its weight."""
    if node.op == "DeformConv":
        return 1
    return 2 if node.attrs.get("packed_offset_mask") else 3


def pair(value: Any) -> tuple[int, int]:
    """Height and width of an attribute that may be one number for both."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
