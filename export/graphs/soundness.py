"""What every command may take for granted of a model: one form where ONNX knows several, and no mistakes."""

from collections import Counter
from graphlib import CycleError, TopologicalSorter
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from export.errors import UsageError, one_line
from export.graphs import foreign_nodes
from export.graphs.surgery import CONVOLUTIONS, graphs_of, nodes_of

ELSEWHERE = "elsewhere"
"""A domain for nodes that ONNX does not know: its tools let those of others pass."""

LARGE = 1024
"""Elements of a constant on whose values no shape depends."""

_WEIGHTED = (*CONVOLUTIONS, "BatchNormalization", "InstanceNormalization", "LayerNormalization")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def set_apart(model: onnx.ModelProto) -> dict[tuple[str, ...], str]:
    """Puts the nodes that ONNX does not know in the model's opsets into `ELSEWHERE`.

    Returns:
        The domain that each was of, by its outputs.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    unknown = [
        node
        for node in nodes_of(model.graph.node)
        if not onnx.defs.has(node.op_type, opsets.get(node.domain, 1), node.domain)
    ]
    domains = {tuple(node.output): node.domain for node in unknown}
    for node in unknown:
        node.domain = ELSEWHERE
    model.opset_import.append(helper.make_opsetid(ELSEWHERE, 1))
    return domains


def normalise(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without functions of its own, its nodes in order and with names that no others have.

    Raises:
        UsageError: nodes read each other.
    """
    for part in (model, *model.functions):
        nodes = part.graph.node if isinstance(part, onnx.ModelProto) else part.node
        for each in (*part.opset_import, *nodes_of(nodes)):
            each.domain = "" if each.domain == "ai.onnx" else each.domain
    if model.functions:
        model = inliner.inline_local_functions(model)
    for graph in graphs_of(model.graph):
        _sort(graph)
        _name_apart(graph)
    return model


def _sort(graph: onnx.GraphProto) -> None:
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needed = {
        index: {makers[name] for each in nodes_of([node]) for name in each.input if name in makers} - {index}
        for index, node in enumerate(graph.node)
    }
    if all(other < index for index, others in needed.items() for other in others):
        return
    try:
        order = [*TopologicalSorter(needed).static_order()]
    except CycleError as error:
        names = ", ".join(graph.node[index].name or graph.node[index].op_type for index in error.args[1])
        raise UsageError(f"found nodes that wait for each other: {names}: export the model again") from None
    nodes = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _name_apart(graph: onnx.GraphProto) -> None:
    taken = {node.name for node in graph.node}
    seen: Counter[str] = Counter()
    for node in graph.node:
        name = node.name
        seen[name] += 1
        while name and seen[name] > 1 and node.name in taken:
            node.name = f"{name}_{seen[name]}"
            seen[name] += node.name in taken
        taken.add(node.name)


def check(model: onnx.ModelProto) -> None:
    """Holds a model against ONNX's own rules, nodes of others left alone, and looks for damaged weights.

    Raises:
        UsageError: it has no output, a later opset, layers that do not fit, or weights that are not finite.
        Exception: one of ONNX's, about a mistake that it found.
    """
    if not model.graph.output:
        raise UsageError("found no output, expected at least one")
    newest = onnx.defs.onnx_opset_version()
    opset = max((entry.version for entry in model.opset_import if not entry.domain), default=1)
    if opset > newest:
        raise UsageError(f"found opset {opset}, expected at most {newest}: export the model with that")
    bare = _without_large_constants(model)
    set_apart(bare)
    described = onnx.ModelProto()
    described.CopyFrom(bare)
    for tensor in (*described.graph.input, *described.graph.output):
        if tensor.type.HasField("tensor_type"):  # many leave the shape out
            tensor.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(described)
    try:
        onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:  # a line for each node behind the first
        raise UsageError(str(error).splitlines()[0].partition("error(s): ")[2] or one_line(error)) from None
    _check_values(model)


def _without_large_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """With inputs in their place: no tool of ONNX takes more than 2 GiB."""
    graph, given = model.graph, {tensor.name for tensor in model.graph.input}
    small, inputs = [], list(graph.input)
    for tensor in graph.initializer:
        if prod(tensor.dims) < LARGE:
            small.append(tensor)
            continue
        onnx.checker.check_tensor(tensor)
        if tensor.name not in given:
            inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    bare = helper.make_graph(
        graph.node,
        graph.name or "graph",
        inputs,
        graph.output,
        small,
        sparse_initializer=graph.sparse_initializer,
    )
    # Before 4, all constants had to be inputs, too.
    version = max(model.ir_version, 4)
    return helper.make_model(bare, opset_imports=model.opset_import, ir_version=version)


def _check_values(model: onnx.ModelProto) -> None:
    """Infinite is a weight by mistake only, but the bound of a Clip and what a mask adds on purpose."""
    nodes = [*nodes_of(model.graph.node)]
    constants = {tensor.name: tensor for graph in graphs_of(model.graph) for tensor in graph.initializer}
    for node in nodes:
        if node.op_type == "Constant":
            constants[node.output[0]] = next(
                (a.t for a in node.attribute if a.name == "value"), TensorProto()
            )
    weights = {
        name
        for node in nodes
        if node.op_type in _WEIGHTED or foreign_nodes.is_deform_conv(node)
        for name in node.input[1:]
    }
    for name, tensor in constants.items():
        if tensor.data_type not in _FLOATS:
            continue
        values = numpy_helper.to_array(tensor)
        wrong = ~np.isfinite(values) if name in weights else np.isnan(values)
        if wrong.any():
            raise UsageError(
                f"{name} has values that are not finite ({wrong.sum()} of {wrong.size}): the training "
                "diverged, or the file is damaged: export an earlier checkpoint"
            )
