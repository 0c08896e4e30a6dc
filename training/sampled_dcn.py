"""DCN by PyTorch's own `grid_sample`, for training on a CPU, where torchvision's backward pass is slow."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.networks.dcn import DCN


def use_grid_sample(network: nn.Module) -> None:
    """Makes every `DCN` of a network compute the same by another operator, with the same parameters."""
    for module in network.modules():
        if isinstance(module, DCN):
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _forward(layer: DCN, x: Tensor) -> Tensor:
    """Maps [N, in, H, W] to [N, out, H, W]: all taps of a picture are sampled as one tall picture."""
    offset, mask = layer.conv_offset_mask(x).split(layer.channels, dim=1)
    (n, channels, height, width), taps = x.shape, layer.channels[1]
    out, _, side, _ = layer.weight.shape
    tap = torch.arange(taps, device=x.device)
    taps_y = torch.arange(height, device=x.device)[:, None] + (tap // side - layer.padding)[:, None, None]
    taps_x = torch.arange(width, device=x.device) + (tap % side - layer.padding)[:, None, None]
    offset_y, offset_x = offset.view(n, taps, 2, height, width).unbind(2)
    # -1 and 1 are the centres of the first and the last pixel; outside there are zeros, as in a DCN.
    grid = torch.stack(
        [(taps_x + offset_x) * (2 / (width - 1)) - 1, (taps_y + offset_y) * (2 / (height - 1)) - 1], -1
    )
    samples = F.grid_sample(x, grid.view(n, taps * height, width, 2), align_corners=True)
    samples = samples.view(n, channels, taps, height, width) * mask.sigmoid()[:, None]
    columns = samples.view(n, channels * taps, height, width)
    return F.conv2d(columns, layer.weight.view(out, -1, 1, 1), layer.bias)
