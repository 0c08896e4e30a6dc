"""Weights that make a network work as a trained one does, for architectures without a checkpoint at hand."""

from pathlib import Path

import cv2
import numpy as np
import torch
from centernet_image import contract
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from clients.output import beside
from export.detector import Normalise
from export.networks import CenterNet, create
from export.networks.dcn import DCN
from export.networks.layers import BasicBlock

HEADS = {"hm": 80, "reg": 2, "wh": 2}
HEAD_SPREAD = {"hm": 0.7, "reg": 0.2, "wh": 4.0}
"""Standard deviation of each raw output."""

HEAD_BIAS = {"reg": 0.5, "wh": 10.0}
"""Boxes of some 40 pixels around their centres."""

OFFSET_SPREAD = 0.3
"""Of what the picture adds to a deformable layer's offsets, in pixels."""

OFFSET_BIAS_SPREAD = 1.0
"""Of the offsets without a picture: nearly all within 2 pixels, as after training.

Zero offsets, which training starts from, read memory far more kindly; with all of them from the picture,
rounding errors grow from layer to layer.
"""

RESIDUAL_GAIN = 0.3
"""Of each residual branch: at 1, a hundred random layers amplify rounding errors as no trained ones do."""


def pictures(count: int, input_size: tuple[int, int], *, seed: int = 0) -> np.ndarray:
    """Made-up frames uint8 [count, H, W, 3], as smooth as photographs: noise of several sizes."""
    random = np.random.default_rng(seed)
    height, width = input_size
    frames = np.zeros((count, height, width, 3), np.float32)
    for cells in (4, 16, 64):
        for frame in frames:
            grid = random.normal(0, 200 / cells**0.5, (cells, cells, 3)).astype(np.float32)
            frame += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(frames + 128, 0, 255).astype(np.uint8)


def make_checkpoint(
    arch: str, path: Path, *, input_size: tuple[int, int] = contract.INPUT_SIZE, seed: int = 0
) -> None:
    """Write a checkpoint of random weights with activations, offsets and outputs as large as a trained one's.

    One pass over made-up pictures sets BatchNorm's statistics, and the scale of the last layers by what
    reaches them.
    """
    torch.manual_seed(seed)
    network = create(arch, HEADS)
    _scale_by_input(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # Statistics are then those of the passes seen: one.
    frames = torch.from_numpy(pictures(2, input_size))
    with torch.no_grad():
        network.train()(Normalise()(frames))
    with beside(path) as part:
        torch.save({"state_dict": network.state_dict()}, part)


def _scale_by_input(network: CenterNet) -> None:
    def scale(convolution: nn.Conv2d, spread: float) -> None:
        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            size = inputs[0].square().mean().sqrt()
            fan_in = convolution.weight[0].numel()
            nn.init.normal_(convolution.weight, std=spread / (float(size) * fan_in**0.5))

        convolution.register_forward_pre_hook(before)

    for module in network.modules():
        if isinstance(module, DCN):
            scale(module.conv_offset_mask, OFFSET_SPREAD)
            nn.init.normal_(module.conv_offset_mask.bias, std=OFFSET_BIAS_SPREAD)  # type: ignore[arg-type]
        elif isinstance(module, BasicBlock | Bottleneck):
            last_norm = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.constant_(last_norm.weight, RESIDUAL_GAIN)  # type: ignore[arg-type]
    for name, spread in HEAD_SPREAD.items():
        *_, last = (layer for layer in network.get_submodule(name).modules() if isinstance(layer, nn.Conv2d))
        scale(last, spread)
        if name in HEAD_BIAS:
            nn.init.constant_(last.bias, HEAD_BIAS[name])  # type: ignore[arg-type]
