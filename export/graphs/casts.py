"""DCNv2 nodes of FP16 with FP32 offsets, out of what `positions.round_around` writes for them."""

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from export.graphs.surgery import is_output


def fuse(node: gs.Node) -> None:
    """Makes a DCNv2 node between such casts read and write FP16, its offset and mask FP32."""
    data, offset, mask, weight, bias, *_ = [*node.inputs, *[None] * 5][:5]
    if data is None or not data.inputs or data.inputs[0].name != f"{node.name}/data/to_fp32":
        return
    if not all(isinstance(tensor, gs.Constant) for tensor in (weight, bias)):
        return
    (cast,) = node.outputs[0].outputs
    node.inputs = [
        data.inputs[0].inputs[0],
        offset,
        mask,
        gs.Constant(f"{weight.name}/fp16", weight.values.astype(np.float16)),
        gs.Constant(f"{bias.name}/fp16", bias.values.astype(np.float16)),
    ]
    node.outputs = list(cast.outputs)
    cast.inputs.clear()
    cast.outputs.clear()


def drop_round_trips(graph: gs.Graph) -> None:
    """Takes out casts from FP16 to FP32 and back."""
    for cast in graph.nodes:
        if cast.op != "Cast" or cast.attrs["to"] != TensorProto.FLOAT16:
            continue
        if not cast.inputs or not cast.inputs[0].inputs:
            continue
        before = cast.inputs[0].inputs[0]
        if before.op != "Cast" or not before.inputs or before.inputs[0].dtype != np.float16:
            continue
        if is_output(graph, cast.outputs[0]):
            continue
        for reader in list(cast.outputs[0].outputs):
            for index, tensor in enumerate(reader.inputs):
                if tensor is cast.outputs[0]:
                    reader.inputs[index] = before.inputs[0]
        cast.inputs.clear()
        if not before.outputs[0].outputs and not is_output(graph, before.outputs[0]):
            before.inputs.clear()  # else it would be one more reader of what comes before
