"""ResNet with deformable up-sampling: CenterNet's resdcn_18 to resdcn_152."""

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from export.networks.dcn import DCN
from export.networks.layers import BasicBlock, CenterNet, Heads, conv_bn, init_backbone, upsample

BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Residual block and its number in each stage, by depth."""


class ResDCN(CenterNet):
    """ResNet, then three times a DCN and a transposed convolution."""

    def __init__(self, depth: int, heads: Heads, *, channels: int = 64, head_channels: int = 64) -> None:
        super().__init__()
        block, counts = BLOCKS[depth]
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        width = channels
        for stage, count in enumerate(counts):
            out = channels * 2**stage
            blocks: list[nn.Module] = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                downsample = None
                if width != out * block.expansion:
                    downsample = nn.Sequential(*conv_bn(width, out * block.expansion, 1, stride=stride))
                blocks.append(block(width, out, stride=stride, downsample=downsample))
                width = out * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

        layers: list[nn.Module] = []
        for out in (4 * channels, 2 * channels, channels):
            layers += [DCN(width, out), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            layers += [upsample(out, 2, groups=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            width = out
        self.deconv_layers = nn.Sequential(*layers)
        init_backbone(self)
        self.add_heads(width, heads, head_channels)

    def features(self, x: Tensor, *previous: Tensor) -> Tensor:
        """Maps normalised BGR [N, 3, H, W] to [N, channels, H/4, W/4]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.deconv_layers(x)
