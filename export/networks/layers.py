"""What the architectures share: blocks, up-sampling, heads."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Heads = Mapping[str, int]
"""Channels of each output, by name."""


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size (up to `stride`), and its BatchNorm."""
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
    )
    return [conv, nn.BatchNorm2d(out_channels)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2015)."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, channels, 3, stride=stride)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Maps [N, in, H, W] to [N, channels, H/stride, W/stride]; `shortcut` replaces the block's own."""
        if shortcut is None:
            shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


def upsample(channels: int, factor: int, *, groups: int) -> nn.ConvTranspose2d:
    """A transposed convolution, bilinear interpolation at first, that enlarges both sides `factor` times."""
    layer = nn.ConvTranspose2d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2, groups=groups, bias=False
    )
    ramp = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        channel = torch.arange(channels)
        layer.weight[channel, channel % layer.weight.shape[1]] = torch.outer(ramp, ramp)
    return layer


class CenterNet(nn.Module):
    """Base of the networks: `features` at stride 4, then one small convolutional head per output.

    Zhou et al., "Objects as Points", 2019.

    Attributes:
        channels: Of each output, by name, in their order.
        stems: Names of the inputs beyond the picture, in their order.
    """

    channels: dict[str, int]
    stems: tuple[str, ...] = ()

    def features(self, x: Tensor, *previous: Tensor) -> Tensor:
        """Maps a normalised picture [N, 3, H, W] and the stems' inputs to [N, channels, H/4, W/4]."""
        raise NotImplementedError

    def add_heads(self, in_channels: int, heads: Heads, head_channels: int) -> None:
        """Adds the heads; `head_channels` 0 leaves out the 3x3 convolution in front of the output."""
        self.channels = dict(heads)
        for name, channels in heads.items():
            output = nn.Conv2d(head_channels or in_channels, channels, 1)
            if name == "hm":
                # Focal loss needs a low prior of "object here": 0.1 (Lin et al., 2017).
                nn.init.constant_(output.bias, -2.19)  # type: ignore[arg-type]
            else:
                nn.init.normal_(output.weight, std=0.001)
                nn.init.zeros_(output.bias)  # type: ignore[arg-type]
            head: nn.Module = output
            if head_channels:
                conv = nn.Conv2d(in_channels, head_channels, 3, padding=1)
                head = nn.Sequential(conv, nn.ReLU(inplace=True), output)
            self.add_module(name, head)

    def forward(self, x: Tensor, *previous: Tensor) -> dict[str, Tensor]:
        """Maps a normalised picture [N, 3, H, W] and the stems' inputs to the raw output of each head.

        An output is [N, channels, H/4, W/4].
        """
        x = self.features(x, *previous)
        return {name: self.get_submodule(name)(x) for name in self.channels}


def init_backbone(network: nn.Module) -> None:
    """Sets plain convolutions to He et al.'s initialisation (2015), which training from scratch needs."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
