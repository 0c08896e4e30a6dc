"""A narrow detector as the exporter writes it, traced once in a test run."""

from functools import cache

import numpy as np
import onnx
import torch

from export import networks
from export.detector import Detector
from export.graphs import torch_export
from export.plan import feed_dicts

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
    return torch_export.trace(module, [example], input_names=["frame"], output_names=[*OUTPUTS, *HEADS])


def frames(count: int) -> list[dict[str, np.ndarray]]:
    return [
        feed_dicts.noise({"frame": [1, *SIZE, 3]}, {"frame": np.uint8}, seed=seed) for seed in range(count)
    ]
