"""A narrow detector as the exporter writes it, traced once in a test run."""

from functools import cache, partial

import exported
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import torch

from export import networks
from export.detector import Detector
from export.graphs import torch_export
from export.graphs.surgery import rewritten
from export.plan import feed_dicts, precision

SIZE = (64, 96)
OUTPUTS = ("boxes", "scores", "classes", "peaks")
HEADS = ("hm", "wh", "reg")


@cache
def detector() -> onnx.ModelProto:
    """A resdcn_18 with its raw heads among the outputs, and offsets that differ from pixel to pixel."""
    torch.manual_seed(0)
    network = networks.create("resdcn_18", {"hm": 3, "wh": 2, "reg": 2}, width=0.25).eval()
    # As large as a trained network's activations, so that FP16 holds them.
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 4:
            gain = 0.1 if "offset" in name else 1 if name.startswith("layer") else 2
            torch.nn.init.normal_(tensor, 0, gain / tensor[0].numel() ** 0.5)
        elif name.endswith(("weight", "running_var")):
            torch.nn.init.uniform_(tensor, 0.8, 1.2)
        elif name.endswith(("bias", "running_mean")):
            torch.nn.init.normal_(tensor, 0, 0.1)
    module = torch_export.fold_batch_norm(Detector(network, top_k=20).eval())
    example = torch.zeros(2, *SIZE, 3, dtype=torch.uint8)
    return exported.trace(module, [example], input_names=["frame"], output_names=[*OUTPUTS, *HEADS])


def frames(count: int) -> list[dict[str, np.ndarray]]:
    return [
        feed_dicts.noise({"frame": [1, *SIZE, 3]}, {"frame": np.uint8}, seed=seed) for seed in range(count)
    ]


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))


def to_fp16(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    return rewritten(model, partial(precision.to_fp16, **options))


def types(model: onnx.ModelProto) -> dict[str, np.dtype]:
    return {node.name: node.outputs[0].dtype for node in gs.import_onnx(model).nodes}
