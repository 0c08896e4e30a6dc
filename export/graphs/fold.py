"""What networks have around their deformable convolutions, as part of them.

BatchNorm behind a DCN, a mask of c·sigmoid, offsets and mask of two convolutions: exporters leave them as
they are, and TensorRT cannot look into a plugin. Done in FP32, before weights are rounded: a BatchNorm may be
what brings them into FP16's range. A graph without any of it stays as it is.
"""

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from export.graphs.surgery import is_output, only_reader

_OUTPUT_AXIS = {"DeformConv": 0, "Conv": 0, "ConvTranspose": 1}


def fold(graph: gs.Graph, *, apart: Collection[str] = ()) -> None:
    """Folds what can be folded, with the same results up to rounding.

    Args:
        graph: with standard operators, DeformConv among them.
        apart: names of nodes that will have another precision than others: they are not merged with those.
    """
    scaled: dict[tuple[int, float], tuple[gs.Constant, gs.Constant]] = {}
    for node in list(graph.nodes):
        if node.op == "DeformConv":
            _fold_mask_factor(graph, node, scaled)
            _merge_offset_and_mask(graph, node, apart)
        if node.op in _OUTPUT_AXIS:
            while _fold_next(graph, node):
                pass


def _fold_mask_factor(
    graph: gs.Graph, node: gs.Node, scaled: dict[tuple[int, float], tuple[gs.Constant, gs.Constant]]
) -> None:
    """A mask c · sigmoid(x) is sigmoid(x) with weights c times as large."""
    mask = node.inputs[4] if len(node.inputs) > 4 else None
    weight = node.inputs[1]
    if mask is None or not mask.inputs or mask.inputs[0].op != "Mul" or not isinstance(weight, gs.Constant):
        return
    factors = [tensor for tensor in mask.inputs[0].inputs if isinstance(tensor, gs.Constant)]
    sigmoids = [t for t in mask.inputs[0].inputs if t.inputs and t.inputs[0].op == "Sigmoid"]
    if len(factors) != 1 or len(sigmoids) != 1 or factors[0].values.size != 1:
        return
    factor = float(factors[0].values.reshape(()))
    key = (id(weight), factor)
    if key not in scaled:
        values = (weight.values * np.float64(factor)).astype(weight.values.dtype)
        # With the weight itself, whose id would else be another one's once it is gone.
        scaled[key] = weight, gs.Constant(f"{weight.name}/times_{factor:g}", values)
    node.inputs[1] = scaled[key][1]
    node.inputs[4] = sigmoids[0]
    if not mask.outputs and not is_output(graph, mask):
        mask.inputs[0].inputs.clear()  # else it would be one more reader of the sigmoid


def _merge_offset_and_mask(graph: gs.Graph, node: gs.Node, apart: Collection[str]) -> None:
    """Two convolutions of one tensor, for offsets and mask, become one: the plugin reads its output."""
    if len(node.inputs) < 5 or not node.inputs[2].inputs or not node.inputs[4].inputs:
        return
    offset, mask = node.inputs[2], node.inputs[4]
    sigmoid: gs.Node = mask.inputs[0]
    if sigmoid.op != "Sigmoid" or not sigmoid.inputs[0].inputs:
        return
    logits = sigmoid.inputs[0]
    first, second = offset.inputs[0], logits.inputs[0]
    readers = {id(only_reader(graph, tensor)) for tensor in (offset, mask)}
    if readers != {id(node)} or only_reader(graph, logits) is not sigmoid:
        return
    if first is second or (first.name in apart) != (second.name in apart):
        return
    if not all(_is_plain(conv) for conv in (first, second)) or first.inputs[0] is not second.inputs[0]:
        return
    weights = [conv.inputs[1].values for conv in (first, second)]
    attributes = [_geometry(conv) for conv in (first, second)]
    if attributes[0] != attributes[1] or weights[0].shape[1:] != weights[1].shape[1:]:
        return
    biases = [
        conv.inputs[2].values if len(conv.inputs) > 2 else np.zeros(len(weight), weight.dtype)
        for conv, weight in zip((first, second), weights, strict=True)
    ]
    sides = offset.shape and [offset.shape[0], sum(len(weight) for weight in weights), *offset.shape[2:]]
    packed = gs.Variable(f"{node.name}/packed", offset.dtype, sides)
    sizes = gs.Constant(f"{node.name}/sizes", np.array([len(weight) for weight in weights], np.int64))
    first.outputs, second.outputs = [packed], []
    first.inputs = [
        first.inputs[0],
        gs.Constant(f"{node.name}/packed_weight", np.concatenate(weights)),
        gs.Constant(f"{node.name}/packed_bias", np.concatenate(biases)),
    ]
    second.inputs = []
    graph.nodes.append(gs.Node("Split", f"{node.name}/Split", {"axis": 1}, [packed, sizes], [offset, logits]))


def _is_plain(conv: gs.Node) -> bool:
    return (
        conv.op == "Conv"
        and conv.attrs.get("group", 1) == 1
        and all(isinstance(tensor, gs.Constant) for tensor in conv.inputs[1:])
    )


def _geometry(conv: gs.Node) -> dict[str, object]:
    defaults: dict[str, object] = {
        "strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "auto_pad": "NOTSET",
    }  # fmt: skip
    return {name: conv.attrs.get(name, default) for name, default in defaults.items()}


def _fold_next(graph: gs.Graph, node: gs.Node) -> bool:
    """Folds the BatchNorm, or the factor or summand by channel, that alone reads what `node` computes."""
    weight = node.inputs[1]
    index = 3 if node.op == "DeformConv" else 2
    bias = node.inputs[index] if len(node.inputs) > index and not node.inputs[index].is_empty() else None
    if not isinstance(weight, gs.Constant) or not (bias is None or isinstance(bias, gs.Constant)):
        return False
    if node.op == "ConvTranspose" and node.attrs.get("group", 1) != 1:
        return False
    axis = _OUTPUT_AXIS[node.op]
    reader = only_reader(graph, node.outputs[0])
    found = None if reader is None else _scale_and_shift(node, reader, weight.values.shape[axis])
    if reader is None or found is None:
        return False
    scale, shift = found
    sides = [1] * weight.values.ndim
    sides[axis] = -1
    dtype = weight.values.dtype
    before = np.zeros(len(scale)) if bias is None else bias.values.astype(np.float64)
    name = f"{node.name}/folded"
    node.inputs[1] = gs.Constant(f"{name}_weight", (weight.values * scale.reshape(sides)).astype(dtype))
    new = gs.Constant(f"{name}_bias", (before * scale + shift).astype(dtype))
    if len(node.inputs) > index:
        node.inputs[index] = new
    else:
        node.inputs.append(new)
    node.outputs = [reader.outputs[0]]
    reader.inputs.clear()
    reader.outputs.clear()
    return True


def _scale_and_shift(node: gs.Node, reader: gs.Node, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """What `reader` does to each channel, in FP64; None if it does something else."""
    others = [tensor for tensor in reader.inputs if tensor is not node.outputs[0]]
    if not others or not all(isinstance(tensor, gs.Constant) for tensor in others):
        return None
    values = [tensor.values.astype(np.float64) for tensor in others]
    if reader.op == "BatchNormalization":
        if reader.attrs.get("training_mode", 0) or len(reader.outputs) != 1 or len(values) != 4:
            return None
        gamma, beta, mean, variance = values
        scale = gamma / np.sqrt(variance + reader.attrs.get("epsilon", 1e-5))
        return scale, beta - mean * scale
    # A convolution that TensorRT knows is left to it: its own fusions look for what stands there.
    if reader.op not in ("Mul", "Add") or node.op != "DeformConv":
        return None
    (value,) = values
    if value.size == 1 and value.ndim <= 4:
        value = np.full(channels, value.reshape(()))
    elif value.ndim in (3, 4) and value.size == value.shape[-3] == channels:
        value = value.reshape(channels)
    else:
        return None
    if reader.op == "Mul":
        return value, np.zeros(channels)
    return np.ones(channels), value
