"""Graph rewrites: between DeformConv and the plugin's DCNv2, and to what TensorRT computes faster."""

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from export.graphs import casts, foreign_nodes, geometry, standard_nodes
from export.graphs.surgery import (
    RewriteError,
    apply,
    export_graph,
    import_graph,
    infer_types,
    inner_graphs,
    kernel_size,
    nodes_of,
    only_reader,
    weight_index,
)


def to_dcnv2(graph: gs.Graph, *, fuse: bool = True, tf32: bool = False) -> None:
    """Rewrites every DeformConv node to DCNv2, the plugin's node.

    Names of nodes and tensors are kept. A DeformConv without mask gets a mask of ones, one without bias
    zeros: TensorRT's parser knows no omitted input of a plugin. A graph that has DCNv2 nodes already (the
    original project's exports) keeps them.

    Args:
        graph: with or without DeformConv nodes.
        fuse: also moves into the node what surrounds it: the split and sigmoid of the offset convolution's
            output (`packed_offset_mask`), the ReLU behind it (`relu`), and constant weights as
            [O, kh, kw, I / groups] (`weight_ohwi`); and Q/DQ pairs around it (`quantized`,
            `quantized_output`), where the plugin has fast INT8 kernels.
        tf32: lets FP32 nodes round their products to TF32 (`allow_tf32`), which a plugin is not told else.

    Raises:
        RewriteError: padding is not symmetric, or a weight's kernel size is unknown.
    """
    for node in graph.nodes:
        if node.op == "DeformConv":
            _to_dcnv2(graph, node)
    for node in graph.nodes:
        if node.op == "DCNv2" and tf32:
            node.attrs["allow_tf32"] = 1
    if fuse:
        repacked: dict[int, tuple[gs.Constant, gs.Constant]] = {}
        for node in graph.nodes:
            if node.op == "DCNv2":
                casts.fuse(node)
        casts.drop_round_trips(graph)
        for node in graph.nodes:
            if node.op == "DCNv2":
                _fuse_offset_mask(node)
                _fuse_relu(graph, node)
                _fuse_quantization(graph, node)
                _fuse_weight_layout(node, repacked)


def to_deform_conv(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model of `import_standard`, which ONNX Runtime runs."""
    if not any(map(foreign_nodes.is_dcn, nodes_of(model.graph.node))):
        return model
    return import_standard(model)[1]


def import_standard(model: onnx.ModelProto) -> tuple[gs.Graph, onnx.ModelProto]:
    """A graph with every DCNv2 node, fused or not, and those of others, rewritten to standard operators.

    A model of an opset before 19 is converted to 19, where DeformConv begins. The tensors know their types.

    Returns:
        The graph, and its model: the given one, if that is standard.

    Raises:
        RewriteError: a node has another number of inputs than its attributes ask for,
            `weight_ohwi` without a constant weight, says too little to be rewritten, does not fit its
            tensors, or lies within an If, Loop or Scan.
    """
    for holder in model.graph.node:
        for inner in inner_graphs(holder):
            for node in filter(foreign_nodes.is_dcn, nodes_of(inner.node)):
                raise RewriteError(
                    f"{node.name or node.output[0]}: found a deformable convolution within {holder.op_type} "
                    f"{holder.name}, expected none in control flow: export the model without that"
                )
    newer = standard_nodes.raise_opset(model) if any(map(foreign_nodes.is_dcn, model.graph.node)) else model
    foreign = any(map(foreign_nodes.is_deform_conv, model.graph.node))
    graph = import_graph(newer)
    apply(graph, foreign_nodes.to_deform_conv, standard_nodes.to_deform_conv)
    if foreign:  # what lies behind them has no types yet
        infer_types(graph, export_graph(graph))
    geometry.check(graph)
    return graph, export_graph(graph) if foreign or newer is not model else model


def to_dense_conv_transpose(graph: gs.Graph) -> None:
    """Rewrites depthwise ConvTranspose nodes, DLA's upsampling, to dense ones: zeros between the channels.

    TensorRT has tensor-core kernels for the dense ones alone. Products with zero change no finite sum.
    """
    made: dict[int, gs.Constant] = {}
    for node in graph.nodes:
        if node.op != "ConvTranspose":
            continue
        pair = _pair_behind_constant(node.inputs[1])
        weight = pair[0].inputs[0] if pair else node.inputs[1]
        if not isinstance(weight, gs.Constant):
            continue
        channels, per_group, *kernel = weight.values.shape
        if per_group != 1 or node.attrs.get("group", 1) != channels:
            continue
        if id(weight) not in made:
            dense = np.zeros((channels, channels, *kernel), weight.values.dtype)
            dense[range(channels), range(channels)] = weight.values[:, 0]
            made[id(weight)] = gs.Constant(f"{weight.name}/dense", dense)
        if pair:
            pair[0].inputs[0] = made[id(weight)]
            for each in pair:
                each.attrs["axis"] = 1  # the output channel's; before, there was but one
                each.outputs[0].shape = made[id(weight)].shape
        else:
            node.inputs[1] = made[id(weight)]
        node.attrs["group"] = 1


def _pair_behind_constant(tensor: gs.Tensor) -> tuple[gs.Node, gs.Node] | None:
    """The nodes of the Q/DQ pair that `tensor` comes out of, if it quantizes a constant."""
    if not tensor.inputs or tensor.inputs[0].op != "DequantizeLinear":
        return None
    dequantize = tensor.inputs[0]
    source = dequantize.inputs[0]
    if not source.inputs or source.inputs[0].op != "QuantizeLinear":
        return None
    quantize = source.inputs[0]
    return (quantize, dequantize) if isinstance(quantize.inputs[0], gs.Constant) else None


def _to_dcnv2(graph: gs.Graph, node: gs.Node) -> None:
    attrs = node.attrs
    height, width = kernel_size(node)
    top, left, bottom, right = attrs.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise RewriteError(
            f"{node.name}: found pads {[top, left, bottom, right]}, expected the same at both ends: "
            "put a Pad in front of the layer"
        )
    offset_groups = attrs.get("offset_group", 1)
    inputs = [*node.inputs, *[gs.Variable.empty()] * (5 - len(node.inputs))]
    data, weight, offset, bias, mask = inputs
    channels = offset_groups * height * width
    dtype = weight.dtype if weight.dtype is not None else np.float32
    if bias.is_empty():
        if not weight.shape or not isinstance(weight.shape[0], int):
            raise RewriteError(
                f"{node.name}: found no bias and a weight of shape {weight.shape}, expected known "
                "output channels: export the model with constant weights"
            )
        bias = gs.Constant(f"{node.name}/bias", np.zeros(weight.shape[0], dtype))
    if mask.is_empty():
        mask = _ones_mask(graph, node.name, offset, channels, dtype)
    node.op = "DCNv2"
    node.domain = None
    node.inputs = [data, offset, mask, weight, bias]
    node.attrs = {
        "stride": list(attrs.get("strides", [1, 1])),
        "padding": [top, left],
        "dilation": list(attrs.get("dilations", [1, 1])),
        "groups": attrs.get("group", 1),
        "deformable_group": offset_groups,
    }


def _ones_mask(graph: gs.Graph, name: str, offset: gs.Tensor, channels: int, dtype: Any) -> gs.Variable:
    # Expanded at run time, so that any batch and map size is served.
    batch, sides, shape, mask = (gs.Variable(f"{name}/mask/{part}") for part in ("n", "hw", "shape", "ones"))
    ones = gs.Constant(f"{name}/mask/one", np.ones((1, channels, 1, 1), dtype))
    count = gs.Constant(f"{name}/mask/channels", np.array([channels], np.int64))
    graph.nodes += [
        gs.Node("Shape", f"{name}/mask/Shape_n", {"start": 0, "end": 1}, [offset], [batch]),
        gs.Node("Shape", f"{name}/mask/Shape_hw", {"start": 2, "end": 4}, [offset], [sides]),
        gs.Node("Concat", f"{name}/mask/Concat", {"axis": 0}, [batch, count, sides], [shape]),
        gs.Node("Expand", f"{name}/mask/Expand", {}, [ones, shape], [mask]),
    ]
    mask.dtype = dtype
    return mask


def _fuse_offset_mask(node: gs.Node) -> None:
    if node.attrs.get("packed_offset_mask"):
        return
    data, offset, mask, weight, bias = node.inputs
    height, width = kernel_size(node)
    channels = node.attrs.get("deformable_group", 1) * height * width
    if len(mask.inputs) != 1 or mask.inputs[0].op != "Sigmoid":
        return
    offset_slice = _channel_slice(offset)
    mask_slice = _channel_slice(mask.inputs[0].inputs[0])
    if offset_slice is None or mask_slice is None or offset_slice[0] is not mask_slice[0]:
        return
    if offset_slice[1:] != (0, 2 * channels) or mask_slice[1:] != (2 * channels, 3 * channels):
        return
    node.inputs = [data, offset_slice[0], weight, bias]
    node.attrs["packed_offset_mask"] = 1


def _channel_slice(tensor: gs.Tensor) -> tuple[gs.Tensor, int, int] | None:
    """What `tensor` is channels [start, stop) of, seen through Split, Slice and Concat."""
    producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if producer is None:
        return None
    if producer.op == "Split" and producer.attrs.get("axis", 0) == 1:
        sizes = _split_sizes(producer)
        if sizes is None:
            return None
        index = next(i for i, output in enumerate(producer.outputs) if output is tensor)
        return producer.inputs[0], sum(sizes[:index]), sum(sizes[: index + 1])
    if producer.op == "Slice":
        return _slice_bounds(producer)
    if producer.op == "Concat" and producer.attrs.get("axis") == 1:
        parts = [_channel_slice(part) for part in producer.inputs]
        first = parts[0]
        if first is None:
            return None
        source, start, stop = first
        for part in parts[1:]:
            if part is None or part[0] is not source or part[1] != stop:
                return None
            stop = part[2]
        return source, start, stop
    return None


def _split_sizes(split: gs.Node) -> list[int] | None:
    if len(split.inputs) > 1:
        if not isinstance(split.inputs[1], gs.Constant):
            return None
        return [int(size) for size in split.inputs[1].values]
    if "split" in split.attrs:
        return list(split.attrs["split"])
    shape = split.inputs[0].shape
    if not shape or not isinstance(shape[1], int):
        return None
    size = -(-shape[1] // len(split.outputs))
    return [min(size, shape[1] - size * i) for i in range(len(split.outputs))]


def _slice_bounds(node: gs.Node) -> tuple[gs.Tensor, int, int] | None:
    if len(node.inputs) < 4 or not all(isinstance(bound, gs.Constant) for bound in node.inputs[1:]):
        return None
    starts, stops, axes = (list(bound.values) for bound in node.inputs[1:4])
    steps = list(node.inputs[4].values) if len(node.inputs) > 4 else [1]
    source = node.inputs[0]
    if axes != [1] or steps != [1] or not source.shape or not isinstance(source.shape[1], int):
        return None
    start, stop, _ = slice(int(starts[0]), int(stops[0])).indices(source.shape[1])
    return source, start, stop


def _fuse_relu(graph: gs.Graph, node: gs.Node) -> None:
    (output,) = node.outputs
    relu = only_reader(graph, output)
    if relu is None or relu.op != "Relu" or node.attrs.get("relu"):
        return
    node.outputs = [relu.outputs[0]]
    relu.inputs.clear()
    relu.outputs.clear()
    node.attrs["relu"] = 1


def _fuse_quantization(graph: gs.Graph, node: gs.Node) -> None:
    index = weight_index(node)
    data, weight, bias = node.inputs[0], node.inputs[index], node.inputs[index + 1]
    pair = _pair_behind_constant(weight)
    scale = _scale_of(data.inputs[0], "DequantizeLinear") if data.inputs else None
    if pair is None or scale is None or not isinstance(bias, gs.Constant) or not _runs_in_int8(node):
        return
    values = pair[0].inputs[0].values.astype(np.float32)
    scales = np.atleast_1d(pair[0].inputs[1].values).astype(np.float32)
    if pair[0].attrs.get("axis", 1) != 0 and scales.size > 1:
        return
    rounded = np.clip(np.rint(values / scales.reshape(-1, 1, 1, 1)), -127, 127).astype(np.int8)
    multipliers = np.broadcast_to(scale * scales, len(values)).astype(np.float32)
    offsets = bias.values.astype(np.float32)
    (output,) = node.outputs
    quantize = only_reader(graph, output)
    output_scale = None if quantize is None else _scale_of(quantize, "QuantizeLinear")
    if quantize is not None and output_scale is not None:
        multipliers, offsets = multipliers / output_scale, offsets / output_scale
        node.outputs = list(quantize.outputs)
        quantize.outputs.clear()
        node.attrs["quantized_output"] = 1
    node.attrs["quantized"] = 1
    node.inputs[0] = data.inputs[0].inputs[0]
    node.inputs[index] = gs.Constant(f"{weight.name}/constant", rounded)
    node.inputs[index + 1] = gs.Constant(f"{bias.name}/quantized", offsets)
    node.inputs.append(gs.Constant(f"{node.name}/scale", multipliers))


def _scale_of(node: gs.Node, op: str) -> np.float32 | None:
    """Of a Q or DQ node with one scale and no zero point; None of any other."""
    if node.op != op or not all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:]):
        return None
    scale, *zero = (tensor.values for tensor in node.inputs[1:])
    if scale.size != 1 or any(point.any() for point in zero) or not zero or zero[0].dtype != np.int8:
        return None
    return np.float32(scale.reshape(()))


def _runs_in_int8(node: gs.Node) -> bool:
    """Whether the plugin's tensor-core kernel runs it: 16 channels at once, masks between 0 and 1."""
    weight = node.inputs[weight_index(node)]
    if node.attrs.get("groups", 1) != 1 or not weight.shape or not isinstance(weight.shape[1], int):
        return False
    if weight.shape[1] % (16 * node.attrs.get("deformable_group", 1)):
        return False
    mask = node.inputs[2]
    return bool(node.attrs.get("packed_offset_mask")) or (
        len(mask.inputs) == 1
        and (mask.inputs[0].op == "Sigmoid" or mask.inputs[0].name == f"{node.name}/mask/Expand")
    )


def _fuse_weight_layout(node: gs.Node, repacked: dict[int, tuple[gs.Constant, gs.Constant]]) -> None:
    index = weight_index(node)
    weight = node.inputs[index]
    if node.attrs.get("weight_ohwi") or not isinstance(weight, gs.Constant):
        return
    if id(weight) not in repacked:  # several nodes may share it
        values = np.ascontiguousarray(weight.values.transpose(0, 2, 3, 1))
        # With the weight itself, whose id would else be another one's once it is gone.
        repacked[id(weight)] = weight, gs.Constant(f"{weight.name}/ohwi", values)
    node.inputs[index] = repacked[id(weight)][1]
    node.attrs["weight_ohwi"] = 1
