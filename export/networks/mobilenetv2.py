"""MobileNetV2 with a light up-sampling and no DCN: CaoWGG's Mobilenetv2-CenterNet, mobilenetv2_10 and _5.

The backbone is Sandler et al.'s, 2018.
"""

from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

from export.networks.layers import CenterNet, Heads, init_backbone

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels at width 1, number of blocks, and stride of the first of them."""

FEATURES = (1, 2, 4, 6)
"""Stages whose outputs, of strides 4, 8, 16 and 32, are merged."""

STEM = 32
NECK_EPS = 1e-3


def channels_of(count: int, width: float) -> int:
    """`count` times `width`, rounded to a multiple of 8 that is no more than a tenth below."""
    wanted = count * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class Backbone(nn.Module):
    """MobileNetV2 without its last convolution and classifier, cut where features leave it."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = channels_of(STEM, width)
        blocks: list[nn.Module] = [Conv2dNormActivation(3, channels, stride=2, activation_layer=nn.ReLU6)]
        self.channels: list[int] = []
        for stage, (expansion, count, repeats, stride) in enumerate(STAGES):
            out = channels_of(count, width)
            for index in range(repeats):
                first = stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, out, first, expansion))
                channels = out
            if stage in FEATURES:
                self.add_module(f"feature_{stage}", nn.Sequential(*blocks))
                self.channels.append(channels)
                blocks = []

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps [N, 3, H, W] to the features of strides 4, 8, 16 and 32."""
        features = []
        for stage in FEATURES:
            x = self.get_submodule(f"feature_{stage}")(x)
            features.append(x)
        return features


def _neck(conv: nn.Module, channels: int, *, eps: float = NECK_EPS) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(channels, eps=eps), nn.ReLU(inplace=True))


class Merge(nn.Module):
    """Doubles the sides of what comes from below and adds a finer feature map, projected."""

    def __init__(self, channels: int, finer: int) -> None:
        super().__init__()
        up = nn.ConvTranspose2d(channels, channels, 2, stride=2, groups=channels, bias=False)
        self.up = _neck(up, channels)
        self.conv = _neck(nn.Conv2d(finer, channels, 1, bias=False), channels)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        """Maps [N, channels, H, W] and [N, finer, 2·H, 2·W] to [N, channels, 2·H, 2·W]."""
        return self.up(x) + self.conv(finer)


class Up(nn.Module):
    """Merges the features from the deepest up."""

    def __init__(self, features: list[int], channels: int) -> None:
        super().__init__()
        deepest, *finer = reversed(features)
        self.conv = _neck(nn.Conv2d(deepest, channels, 1, bias=False), channels)
        self.conv_last = _neck(nn.Conv2d(channels, channels, 3, padding=1, bias=False), channels, eps=1e-5)
        for index, count in enumerate(finer):
            self.add_module(f"up_{index}", Merge(channels, count))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps features of strides 4 to 32 to [N, channels, H/4, W/4]."""
        deepest, *finer = reversed(features)
        x = self.conv(deepest)
        for index, feature in enumerate(finer):
            x = self.get_submodule(f"up_{index}")(x, feature)
        return self.conv_last(x)


class MobileNetV2(CenterNet):
    """Heads are a single convolution each; `head_channels` is what they read."""

    def __init__(self, heads: Heads, *, channels: int = STEM, head_channels: int = 24) -> None:
        super().__init__()
        self.base = Backbone(channels / STEM)
        self.dla_up = Up(self.base.channels, head_channels)
        init_backbone(self)
        self.add_heads(head_channels, heads, 0)

    def features(self, x: Tensor, *previous: Tensor) -> Tensor:
        """Maps a normalised picture [N, 3, H, W] to [N, head_channels, H/4, W/4]."""
        return self.dla_up(self.base(x))
