"""The modulated deformable convolution (DCNv2) as a PyTorch layer."""

import math

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DCN(nn.Module):
    """Convolution whose taps move by an offset, and weigh by a mask, that a plain convolution predicts.

    Zhu et al., "Deformable ConvNets v2", 2018. Parameter names and channel order are CenterNet's: of the
    3·k·k channels of `conv_offset_mask`, the first 2·k·k are (y, x) offsets in pixels, tap by tap; the rest
    are mask logits.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        taps = kernel_size * kernel_size
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.padding = kernel_size // 2
        self.channels = (2 * taps, taps)
        self.conv_offset_mask = nn.Conv2d(in_channels, 3 * taps, kernel_size, padding=self.padding)
        bound = 1 / math.sqrt(in_channels * taps)
        nn.init.uniform_(self.weight, -bound, bound)
        # Training starts from a plain convolution at half strength.
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(self.conv_offset_mask.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in, H, W] to [N, out, H, W]."""
        offset, mask = self.conv_offset_mask(x).split(self.channels, dim=1)
        return deform_conv2d(
            x, offset, self.weight, self.bias, padding=(self.padding, self.padding), mask=mask.sigmoid()
        )
