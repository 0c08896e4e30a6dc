"""From PyTorch to a tidy ONNX graph."""

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise

import onnx
import torch
from onnxscript import INT64, opset19
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from export.networks.dcn import DCN

OPSET = 19
"""The first with DeformConv, so that old and new runtimes read the file."""

DCN_DOMAIN = "dcnv2"
"""Of DCNv2 nodes: ONNX's checker refuses unknown operators in its own; TensorRT looks at the name alone."""

SCOPES = "pkg.torch.onnx.name_scopes"


def trace(
    module: nn.Module, examples: Sequence[Tensor], *, input_names: Sequence[str], output_names: Sequence[str]
) -> onnx.ModelProto:
    """Exports `module` with its first dimension dynamic.

    Nodes are named by the module that they come from (`network.layer1.0.conv1/Conv`), weights by their
    key in the state dict. The result depends on the module alone, to the byte.

    Args:
        module: In evaluation mode.
        examples: Its inputs, of at least 2 pictures: PyTorch would take a 1 for a constant.
        input_names: Names of the inputs.
        output_names: Names of the outputs.
    """

    def divide(dividend: INT64, divisor: INT64) -> INT64:
        # Indices are positive, so that ONNX's truncation is Python's floor, and as integers exact.
        return opset19.Div(dividend, divisor)

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(examples),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=({0: torch.export.Dim("batch")},) * len(examples),
                custom_translation_table={torch.ops.aten.floor_divide.default: divide},
            )
    finally:
        logging.disable(level)
    assert program is not None
    return _strip(_name_nodes(program.model_proto))


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A copy of `module` in which every BatchNorm behind a convolution, deformable or not, is part of it.

    Args:
        module: In evaluation mode, each BatchNorm registered next to the convolution that it follows, or
            first in a Sequential that is.
    """
    copy = deepcopy(module)
    for parent in list(copy.modules()):
        for (_, conv), (name, after) in pairwise(list(parent.named_children())):
            holder, norm = parent, after
            if isinstance(conv, DCN) and isinstance(after, nn.Sequential):
                holder, name, norm = after, "0", after[0]
            if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d | DCN):
                continue
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            assert norm.running_mean is not None
            assert norm.running_var is not None
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
                # Of channels each by itself the outputs are counted first, as in a plain convolution.
                transpose=isinstance(conv, nn.ConvTranspose2d) and conv.groups == 1,
            )
            holder.add_module(name, nn.Identity())
    return copy


def declare_dcn_domain(model: onnx.ModelProto) -> None:
    """Puts DCNv2 nodes into a domain of their own, so that the ONNX checker accepts the file."""
    for node in model.graph.node:
        if node.op_type == "DCNv2":
            node.domain = DCN_DOMAIN
    if not any(entry.domain == DCN_DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DCN_DOMAIN, 1))


def without_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` in which the tensors `names` are no outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for output in [output for output in copy.graph.output if output.name in names]:
        copy.graph.output.remove(output)
        copy.graph.value_info.append(output)
    return copy


def _name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    used: Counter[str] = Counter()
    weights = {tensor.name for tensor in model.graph.initializer}
    scope_of: dict[str, str] = {}
    for node in model.graph.node:
        scopes = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
        owners = [name.rpartition(".")[0] for name in node.input if name in weights and "." in name]
        # Fused nodes have no scope of their own; they are named by their weight, or by what feeds them.
        scope = scope_of.get(node.input[0], "")
        if owners:
            scope = owners[0]
        elif scopes:
            scope = ast.literal_eval(scopes[0])[-2]
        scope_of.update(dict.fromkeys(node.output, scope))
        name = f"{scope}/{node.op_type}".removeprefix("/")
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
    return model


def _strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes the exporter's notes: they hold paths of this machine and more bytes than the graph."""
    graph = model.graph
    for entry in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        entry.ClearField("doc_string")
        entry.ClearField("metadata_props")
    graph.name = "centernet"
    del model.functions[:]
    return model
