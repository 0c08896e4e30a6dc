"""CenterNet's two networks on DLA-34: dla_34 (DCN in the up-sampling) and dlav0_34 (none)."""

from collections.abc import Sequence

from torch import Tensor, cat, nn

from export.networks.dcn import DCN
from export.networks.dla import DLA
from export.networks.layers import CenterNet, Heads, conv_bn, init_backbone, upsample


class DeformConv(nn.Module):
    """DCN, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = DCN(in_channels, out_channels)
        self.actf = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in, H, W] to [N, out, H, W]."""
        return self.actf(self.conv(x))


class IDAUp(nn.Module):
    """Brings feature maps, finest first, to the first one's size and adds each to the one before."""

    def __init__(self, out_channels: int, channels: Sequence[int], factors: Sequence[int]) -> None:
        super().__init__()
        for i in range(1, len(channels)):
            self.add_module(f"proj_{i}", DeformConv(channels[i], out_channels))
            self.add_module(f"up_{i}", upsample(out_channels, factors[i], groups=out_channels))
            self.add_module(f"node_{i}", DeformConv(out_channels, out_channels))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps n feature maps to n; the last has seen them all."""
        merged = [features[0]]
        for i, x in enumerate(features[1:], 1):
            x = self.get_submodule(f"up_{i}")(self.get_submodule(f"proj_{i}")(x))
            merged.append(self.get_submodule(f"node_{i}")(x + merged[-1]))
        return merged


class ConcatIDAUp(nn.Module):
    """The same in dlav0_34: plain convolutions, and concatenation in place of the sum."""

    def __init__(self, out_channels: int, channels: Sequence[int], factors: Sequence[int]) -> None:
        super().__init__()
        for i in range(1, len(channels)):
            project = nn.Sequential(*conv_bn(channels[i], out_channels, 1), nn.ReLU(inplace=True))
            node = nn.Sequential(*conv_bn(2 * out_channels, out_channels, 3), nn.ReLU(inplace=True))
            self.add_module(f"proj_{i}", project)
            self.add_module(f"up_{i}", upsample(out_channels, factors[i], groups=out_channels))
            self.add_module(f"node_{i}", node)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps n feature maps to n; the last has seen them all."""
        merged = [features[0]]
        for i, x in enumerate(features[1:], 1):
            x = self.get_submodule(f"up_{i}")(self.get_submodule(f"proj_{i}")(x))
            merged.append(self.get_submodule(f"node_{i}")(cat([merged[-1], x], 1)))
        return merged


class DLAUp(nn.Module):
    """Merges the features of all strides from the deepest up, one IDAUp per stride."""

    def __init__(self, merge: type[IDAUp] | type[ConcatIDAUp], channels: Sequence[int]) -> None:
        super().__init__()
        self.steps = len(channels) - 1
        for i in range(self.steps):
            out = channels[-i - 2]
            # All that the steps before have merged has the stride and width of the level below `out`.
            deeper = [channels[-i - 1]] * (i + 1)
            self.add_module(f"ida_{i}", merge(out, [out, *deeper], [1] + [2] * (i + 1)))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps features of strides 4 to 32 to merged ones of strides 4 to 32, in the same order."""
        outputs = merged = features[-1:]
        for i in range(self.steps):
            merged = self.get_submodule(f"ida_{i}")([features[-i - 2], *merged])
            outputs = [merged[-1], *outputs]
        return outputs


class DLA34(CenterNet):
    """dla_34: DCN in every up-sampling step; with `stems` CenterTrack's."""

    def __init__(
        self, heads: Heads, *, channels: int = 16, head_channels: int = 256, stems: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.stems = tuple(stems)
        self.base = DLA(channels, stems)
        levels = self.base.channels[2:]
        self.dla_up = DLAUp(IDAUp, levels)
        self.ida_up = IDAUp(levels[0], levels[:3], (1, 2, 4))
        init_backbone(self)
        self.add_heads(levels[0], heads, head_channels)

    def features(self, x: Tensor, *previous: Tensor) -> Tensor:
        """Maps a normalised picture [N, 3, H, W] and the stems' inputs to [N, channels, H/4, W/4]."""
        return self.ida_up(self.dla_up(self.base(x, *previous))[:3])[-1]


class DLAv034(CenterNet):
    """dlav0_34: no DCN."""

    def __init__(self, heads: Heads, *, channels: int = 16, head_channels: int = 256) -> None:
        super().__init__()
        self.base = DLA(channels)
        levels = self.base.channels[2:]
        # The classifier of the pretrained backbone: unused, but every checkpoint has it.
        self.base.fc = nn.Conv2d(levels[-1], 1000, 1)
        self.dla_up = DLAUp(ConcatIDAUp, levels)
        init_backbone(self)
        self.add_heads(levels[0], heads, head_channels)

    def features(self, x: Tensor, *previous: Tensor) -> Tensor:
        """Maps normalised BGR [N, 3, H, W] to [N, channels, H/4, W/4]."""
        return self.dla_up(self.base(x))[0]
