"""Deep Layer Aggregation, the backbone of dla_34 and dlav0_34 (Yu et al., 2018)."""

from collections.abc import Sequence

from torch import Tensor, cat, nn

from export.networks.layers import BasicBlock, conv_bn


class Root(nn.Module):
    """Joins its inputs' channels by a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv, self.bn = conv_bn(in_channels, out_channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Maps tensors [N, *, H, W] to one [N, out, H, W]."""
        return self.relu(self.bn(self.conv(cat(inputs, 1))))


class Tree(nn.Module):
    """A binary tree of residual blocks; its last root sees the outputs of all subtrees on the way."""

    def __init__(
        self,
        levels: int,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        level_root: bool = False,
        root_channels: int = 0,
    ) -> None:
        super().__init__()
        root_channels = (root_channels or 2 * out_channels) + (in_channels if level_root else 0)
        self.level_root = level_root
        self.downsample = nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        # Only the innermost tree uses its projection, but every checkpoint has the others' weights, too.
        self.project = (
            nn.Sequential(*conv_bn(in_channels, out_channels, 1))
            if in_channels != out_channels
            else nn.Identity()
        )
        self.tree1: nn.Module
        self.tree2: nn.Module
        self.root: nn.Module | None = None
        if levels == 1:
            self.tree1 = BasicBlock(in_channels, out_channels, stride=stride)
            self.tree2 = BasicBlock(out_channels, out_channels)
            self.root = Root(root_channels, out_channels)
        else:
            self.tree1 = Tree(levels - 1, in_channels, out_channels, stride=stride)
            self.tree2 = Tree(
                levels - 1, out_channels, out_channels, root_channels=root_channels + out_channels
            )

    def forward(self, x: Tensor, children: tuple[Tensor, ...] = ()) -> Tensor:
        """Maps [N, in, H, W] to [N, out, H/stride, W/stride]; `children` go on to the last root."""
        bottom = self.downsample(x)
        if self.level_root:
            children = (*children, bottom)
        if self.root is None:
            first = self.tree1(x)
            return self.tree2(first, (*children, first))
        first = self.tree1(x, self.project(bottom))
        return self.root(self.tree2(first), first, *children)


STEMS = {"pre_img": 3, "pre_hm": 1}
"""CenterTrack's further inputs, the previous frame and its objects' heat, and their channels."""


class DLA(nn.Module):
    """DLA-34 without classifier; its first layer once more for each of `stems`, some of `STEMS`."""

    def __init__(self, channels: int = 16, stems: Sequence[str] = ()) -> None:
        super().__init__()
        self.channels = tuple(channels * 2**level for level in range(6))
        self.stems = tuple(f"{stem}_layer" for stem in STEMS if stem in stems)
        c = self.channels
        self.base_layer = nn.Sequential(*conv_bn(3, c[0], 7), nn.ReLU(inplace=True))
        for stem in stems:
            layer = nn.Sequential(*conv_bn(STEMS[stem], c[0], 7), nn.ReLU(inplace=True))
            self.add_module(f"{stem}_layer", layer)
        self.level0 = nn.Sequential(*conv_bn(c[0], c[0], 3), nn.ReLU(inplace=True))
        self.level1 = nn.Sequential(*conv_bn(c[0], c[1], 3, stride=2), nn.ReLU(inplace=True))
        self.level2 = Tree(1, c[1], c[2], stride=2)
        self.level3 = Tree(2, c[2], c[3], stride=2, level_root=True)
        self.level4 = Tree(2, c[3], c[4], stride=2, level_root=True)
        self.level5 = Tree(1, c[4], c[5], stride=2, level_root=True)

    def forward(self, x: Tensor, *previous: Tensor) -> list[Tensor]:
        """Maps [N, 3, H, W] to the features of strides 4, 8, 16 and 32.

        What the first layers make of `previous`, the stems' inputs, is added. Without them the sum is the
        picture's alone, which is not what zeros would give.
        """
        x = self.base_layer(x)
        for stem, tensor in zip(self.stems, previous, strict=bool(previous)):
            x = x + self.get_submodule(stem)(tensor)
        x = self.level2(self.level1(self.level0(x)))
        features = [x]
        for level in (self.level3, self.level4, self.level5):
            features.append(level(features[-1]))
        return features
