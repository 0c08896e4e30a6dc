"""Deformable convolutions as others write them, as the standard DeformConv.

MMCV's and MMDeploy's, NVIDIA's `ModulatedDeformConv2d`, `DCNv2_TRT`, `DCNv2_2`, `DCN`, and `Plugin` nodes
that are told apart by their `name` or `info`. They are alike: the same tensors, and attributes of
other names.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from export.graphs.surgery import RewriteError, nodes_of, unpack

_OPERATOR = re.compile(
    r"_?(MMCV)?(Modulated)?Deform(able)?_?Conv(olution)?(2d)?(_?(v2|Plugin|TRT|Function|Dynamic))*|"
    r"_?DCN(_?v?2)?(_?(2|Plugin|TRT|Function|Dynamic))*",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"-?\d+(?:\.\d*)?")
_CONTAINERS = ("Plugin", "TRT_Plugin", "TRT_PluginV2", "PluginV2")
_PAIRS = {
    "strides": ("stride", "strides"),
    "pads": ("padding", "paddings", "pad", "pads"),
    "dilations": ("dilation", "dilations"),
}
_NUMBERS = {
    "group": ("group", "groups"),
    "offset_group": (
        *("deformable_group", "deformable_groups", "deform_groups", "deform_group"),
        *("offset_group", "offset_groups", "num_deformable_group", "num_deformable_groups"),
    ),
}
_KERNEL = ("kernel_size", "kernel_shape", "kernel")
# They say nothing that the tensors do not, or nothing about the arithmetic.
_IDLE = {
    *("im2col_step", "bias", "with_bias", "oc", "out_channels", "in_channels", "name", "info", "version"),
    *("plugin_version", "plugin_namespace", "namespace", "module", "inplace", "type"),
}
_OWN = ("packed_offset_mask", "weight_ohwi", "relu", "quantized", "quantized_output", "allow_tf32")


def is_deform_conv(node: gs.Node | onnx.NodeProto) -> bool:
    """Whether a node that is not standard is a deformable convolution, by its name or its plugin's."""
    operator, domain = (
        (node.op_type, node.domain) if isinstance(node, onnx.NodeProto) else (node.op, node.domain)
    )
    if operator == "DeformConv" and not domain:
        return False
    if operator in _CONTAINERS:
        attributes = _attributes(node)
        name = str(attributes.get("name") or attributes.get("plugin_name") or "")
        return bool(_OPERATOR.fullmatch(name)) or any(each in attributes for each in _NUMBERS["offset_group"])
    return bool(_OPERATOR.fullmatch(operator))


def is_dcn(node: onnx.NodeProto) -> bool:
    """Whether a node is a deformable convolution, the standard's or another."""
    return node.op_type == "DeformConv" or is_deform_conv(node)


def to_deform_conv(graph: gs.Graph) -> None:
    """Rewrites the nodes of others in `graph`, whose tensors know their shapes where they can.

    DCNv2 nodes with attributes that only this project's have stay.

    Raises:
        RewriteError: a node does not say enough, or something that cannot be kept.
    """
    for node in list(graph.nodes):
        if is_deform_conv(node) and not (node.op == "DCNv2" and _is_own(node)):
            _rewrite(graph, node)


def unknown_nodes(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Name and operator of each node that ONNX does not define, nor this module rewrites."""
    for node in nodes_of(model.graph.node):
        if not is_deform_conv(node) and not onnx.defs.has(node.op_type, node.domain):
            yield node.name or node.output[0], f"{node.domain}::{node.op_type}".removeprefix("::")


def _is_own(node: gs.Node) -> bool:
    """Whether a DCNv2 node is as this project's plugin has it."""
    aliases = {name for names in (*_PAIRS.values(), *_NUMBERS.values()) for name in names}
    own = {"stride", "padding", "dilation", "groups", "deformable_group"}
    if aliases & set(node.attrs) - own:
        return False
    return any(node.attrs.get(name) for name in _OWN) or len(node.inputs) == 5


def _attributes(node: gs.Node | onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes and, where a text holds more of them, those."""
    if isinstance(node, onnx.NodeProto):
        raw = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    else:
        raw = dict(node.attrs)
    found = {name: value.decode() if isinstance(value, bytes) else value for name, value in raw.items()}
    info = found.get("info")
    if isinstance(info, str) and info.strip():
        try:
            further = json.loads(info)
        except ValueError:
            number = _NUMBER.pattern
            pairs = re.findall(rf"(\w+)\s*[:=]\s*[\[(]?\s*({number}(?:\s*[,x]\s*{number})*)", info)
            further = {name: [float(n) for n in _NUMBER.findall(text)] for name, text in pairs}
        if isinstance(further, dict):
            found |= further
    return found


def _rewrite(graph: gs.Graph, node: gs.Node) -> None:
    attributes = _attributes(node)
    what = f"{node.name}: a {f'{node.domain}::' if node.domain else ''}{node.op}"
    known = {name for names in (*_PAIRS.values(), *_NUMBERS.values(), _KERNEL) for name in names} | _IDLE
    # Of a container, other texts say which plugin it is.
    strange = sorted(name for name in set(attributes) - known if not isinstance(attributes[name], str))
    if strange:
        raise RewriteError(
            f"{what} has the attribute {strange[0]}, which is not known: expected those of a deformable "
            "convolution (stride, padding, dilation, groups, deformable_groups); write the node as DeformConv"
        )
    data, offset, mask, weight, bias = _tensors(node, what)
    if not weight.shape or len(weight.shape) != 4 or not all(isinstance(n, int) for n in weight.shape):
        raise RewriteError(
            f"{what} has a weight of shape {weight.shape}, expected a known [O, I, kh, kw]: "
            "export it with constant weights"
        )
    height, width = weight.shape[2:]
    geometry = {name: _pair(what, attributes, names) for name, names in _PAIRS.items()}
    missing = [_PAIRS[name][0] for name in ("strides", "pads") if geometry[name] is None]
    if missing:
        raise RewriteError(
            f"{what} does not say its {' and '.join(missing)}: found the attributes "
            f"{', '.join(sorted(attributes)) or 'none'}; add {'it' if len(missing) == 1 else 'them'} to the "
            "node, or export with DeformConv"
        )
    kernel = _pair(what, attributes, _KERNEL)
    if kernel not in (None, [height, width]):
        raise RewriteError(f"{what} says kernel {kernel}, expected its weight's: {[height, width]}")
    group = _number(what, attributes, _NUMBERS["group"]) or 1
    taps, channels = height * width, _channels(offset)
    offset_group = _number(what, attributes, _NUMBERS["offset_group"])
    packed = mask is None and _is_convolution(offset) and _fits(channels, 3 * taps, offset_group)
    if offset_group is None:
        if channels is None:
            raise RewriteError(
                f"{what} does not say its deformable_groups, and its offset's channels are not known: add it"
            )
        offset_group = max(channels // ((3 if packed else 2) * taps), 1)
    if packed:
        offset, mask = unpack(graph, node.name, offset, taps * offset_group)
    node.op, node.domain = "DeformConv", None
    inputs: list[gs.Tensor | None] = [data, weight, offset, bias, mask]
    while inputs[-1] is None:
        inputs.pop()
    node.inputs = [gs.Variable.empty() if tensor is None else tensor for tensor in inputs]
    node.attrs = {
        "kernel_shape": [height, width],
        "strides": geometry["strides"],
        "pads": 2 * (geometry["pads"] or []),
        "dilations": geometry["dilations"] or [1, 1],
        "group": group,
        "offset_group": offset_group,
    }


def _tensors(node: gs.Node, what: str) -> list[Any]:
    """Data, offset, mask, weight and bias; None where there is none.

    Weight and bias are told from the maps by being constants, in whatever order they come.
    """
    data, *rest = [tensor for tensor in node.inputs if not tensor.is_empty()] or [None]
    weights = [tensor for tensor in rest if isinstance(tensor, gs.Constant) and len(tensor.shape) == 4]
    biases = [tensor for tensor in rest if isinstance(tensor, gs.Constant) and len(tensor.shape) == 1]
    maps = [tensor for tensor in rest if not isinstance(tensor, gs.Constant)]
    if len(weights) == 1 and len(biases) <= 1 and 1 <= len(maps) <= 2 and len(rest) <= 4:
        return [data, maps[0], maps[1] if len(maps) > 1 else None, weights[0], biases[0] if biases else None]
    if len(rest) in (3, 4) and len(weights) != 1:  # computed weights: the order that all have
        return [data, *rest, *[None] * (4 - len(rest))]
    raise RewriteError(
        f"{what} has {len(node.inputs)} inputs, {len(weights)} of them constant weights of 4 dimensions: "
        "expected data, offset, mask, weight and perhaps bias"
    )


def _channels(tensor: gs.Tensor) -> int | None:
    """How many channels a map has, seen through what keeps them where its shape is not known."""
    shape = tensor.shape
    if shape and len(shape) == 4 and isinstance(shape[1], int):
        return shape[1]
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is None:
        return None
    if producer.op == "Conv":
        weight = producer.inputs[1]
        return weight.shape[0] if weight.shape and isinstance(weight.shape[0], int) else None
    if producer.op in ("Sigmoid", "Mul", "Identity", "Cast", "Tanh", "Clip"):
        return _channels(producer.inputs[0])
    return None


def _is_convolution(tensor: gs.Tensor) -> bool:
    """Whether a mask among the channels can only be one before its sigmoid."""
    return bool(tensor.inputs) and tensor.inputs[0].op == "Conv"


def _fits(channels: int | None, unit: int, groups: int | None) -> bool:
    if channels is None:
        return False
    # 6 groups of offsets alone are as many channels as 4 with masks: then the node must say which.
    return channels == unit * groups if groups else channels % unit == 0 and channels % (unit // 3 * 2) != 0


def _value(what: str, attributes: dict[str, Any], names: tuple[str, ...]) -> list[int] | None:
    for name in names:
        if name not in attributes:
            continue
        value = attributes[name]
        try:
            texts = _NUMBER.findall(value) if isinstance(value, str) else np.atleast_1d(value).tolist()
            values = [float(number) for number in texts]
            numbers = [int(number) for number in values]
        except (OverflowError, TypeError, ValueError):
            numbers = []
        if not numbers or numbers != values:
            raise RewriteError(f"{what} has {name} {value!r}, expected whole numbers")
        return numbers
    return None


def _pair(what: str, attributes: dict[str, Any], names: tuple[str, ...]) -> list[int] | None:
    numbers = _value(what, attributes, names)
    if numbers is None:
        return None
    if len(numbers) == 4 and numbers[:2] == numbers[2:]:
        numbers = numbers[:2]
    if len(numbers) > 2:
        raise RewriteError(f"{what} has {names[0]} {numbers}, expected one number, or height and width")
    return [numbers[0], numbers[-1]]


def _number(what: str, attributes: dict[str, Any], names: tuple[str, ...]) -> int | None:
    numbers = _value(what, attributes, names)
    if numbers is not None and (len(numbers) != 1 or numbers[0] < 1):
        raise RewriteError(f"{what} has {names[0]} {numbers}, expected one number of at least 1")
    return numbers[0] if numbers else None
