"""Deformable convolutions under the names of others, for networks that need a compiled extension.

They compute with `torchvision.ops.deform_conv2d`, on the CPU as well, and torch.onnx.export writes standard
DeformConv nodes for them. Two lines in front of the network's own imports:

    from export import dcn
    dcn.install()

Then `from dcn_v2 import DCN`, `from DCNv2.dcn_v2 import DCN` and `from mmcv.ops import
ModulatedDeformConv2dPack` get what is here. Parameters have the names that their checkpoints have.
"""

import importlib.util
import math
import sys
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision import ops

Size = int | tuple[int, int]


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """`torchvision.ops.deform_conv2d`, with offset and mask maps that may be larger than the output.

    The original CUDA code reads its maps by the output's height and width, whatever theirs are: of a larger
    map it takes the first values in memory, image by image. Networks were trained with that (DBNet's ResNets,
    where the DCN has stride 2 and the convolution in front of it 1), so it is done here, too.

    Args:
        input: [N, C, H, W].
        offset: [N, 2 · groups · kh · kw, H', W'], or more rows and columns.
        weight: [O, C / g, kh, kw].
        bias: [O].
        stride: one number, or height and width; as are padding and dilation.
        padding: of zeros, on both ends.
        dilation: distance of the taps.
        mask: [N, groups · kh · kw, H', W'], or as large as `offset`.

    Raises:
        ValueError: a map is smaller than the output.
    """
    size = [
        (side + 2 * pad - d * (kernel - 1) - 1) // step + 1
        for side, pad, d, kernel, step in zip(
            input.shape[2:], _pair(padding), _pair(dilation), weight.shape[2:], _pair(stride), strict=True
        )
    ]
    offset = _as_cuda_reads(offset, size, "offset")
    mask = None if mask is None else _as_cuda_reads(mask, size, "mask")
    return ops.deform_conv2d(
        input, offset, weight, bias, _pair(stride), _pair(padding), _pair(dilation), mask
    )


def _as_cuda_reads(tensor: Tensor, size: list[int], name: str) -> Tensor:
    batch, channels, height, width = tensor.shape
    if (height, width) == tuple(size):
        return tensor
    if height * width < size[0] * size[1]:
        raise ValueError(
            f"found {name} of {height}x{width}, expected at least the output's {size[0]}x{size[1]}: give the "
            "convolution that makes it the stride and padding of the DCN"
        )
    warnings.warn(
        f"{name} is {height}x{width} and the output {size[0]}x{size[1]}: its first values in memory are "
        "read, as the original CUDA code does",
        stacklevel=4,
    )
    return tensor.flatten(1)[:, : channels * size[0] * size[1]].reshape(batch, channels, *size)


def dcn_v2_conv(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: Size,
    padding: Size,
    dilation: Size,
    deformable_groups: int,
) -> Tensor:
    """The function of the `dcn_v2` extension; see `deform_conv2d`."""
    return deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """MMCV's function; see `deform_conv2d`."""
    return deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


def mmcv_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int = 32,
) -> Tensor:
    """MMCV's `deform_conv2d`: without mask and bias."""
    return deform_conv2d(input, offset, weight, None, stride, padding, dilation)


class _Layer(nn.Module):
    """Weight, bias and geometry."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool | str = True,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups or in_channels % deform_groups:
            raise ValueError(
                f"found {in_channels} to {out_channels} channels, expected multiples of groups {groups} and "
                f"deform_groups {deform_groups}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.groups = groups
        self.deform_groups = self.deformable_groups = deform_groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.taps = deform_groups * self.kernel_size[0] * self.kernel_size[1]

    def _convolve(self, input: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        return deform_conv2d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )

    def _predictor(self, channels: int, dilation: Size) -> nn.Conv2d:
        """The convolution for offsets: zeros at first, so that training starts from a plain convolution."""
        conv = nn.Conv2d(self.in_channels, channels, self.kernel_size, self.stride, self.padding, dilation)
        nn.init.zeros_(conv.weight)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        return conv

    def _split(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        offset, mask = packed.split((2 * self.taps, self.taps), dim=1)
        return offset, mask.sigmoid()


class DCNv2(_Layer):
    """`dcn_v2.DCNv2`: offset and mask are given."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size = 1,
        deformable_groups: int = 1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, deform_groups=deformable_groups
        )

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, O, H', W']."""
        return self._convolve(input, offset, mask)


class DCN(DCNv2):
    """`dcn_v2.DCN`: a convolution predicts offset and mask."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Without the dilation, as in the original.
        self.conv_offset_mask = self._predictor(3 * self.taps, 1)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Maps [N, C, H, W] to [N, O, H', W']."""
        return self._convolve(input, *self._split(self.conv_offset_mask(input)))


class ModulatedDeformConv2d(_Layer):
    """`mmcv.ops.ModulatedDeformConv2d`: offset and mask are given."""

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, O, H', W']."""
        return self._convolve(x, offset, mask)


class ModulatedDeformConv2dPack(_Layer):
    """`mmcv.ops.ModulatedDeformConv2dPack`: a convolution predicts offset and mask."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv_offset = self._predictor(3 * self.taps, self.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, O, H', W']."""
        return self._convolve(x, *self._split(self.conv_offset(x)))


class MMCVDeformConv2d(_Layer):
    """`mmcv.ops.DeformConv2d`, version 1: the offset is given, and there is no mask."""

    def __init__(self, *args: Any, im2col_step: int = 32, **kwargs: Any) -> None:
        # The last positional ones are `bias`, of which MMCV, too, takes False alone, and `im2col_step`.
        super().__init__(*args[:8], **kwargs | {"bias": False})

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, O, H', W']."""
        return self._convolve(x, offset, None)


class MMCVDeformConv2dPack(MMCVDeformConv2d):
    """`mmcv.ops.DeformConv2dPack`: a convolution predicts the offset."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv_offset = self._predictor(2 * self.taps, self.dilation)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Maps [N, C, H, W] to [N, O, H', W']."""
        return self._convolve(x, self.conv_offset(x), None)


MODULES: dict[str, dict[str, Any]] = {
    "dcn_v2": {"DCN": DCN, "DCNv2": DCNv2, "dcn_v2_conv": dcn_v2_conv},
    "mmcv.ops": {
        "DeformConv2d": MMCVDeformConv2d,
        "DeformConv2dPack": MMCVDeformConv2dPack,
        "ModulatedDeformConv2d": ModulatedDeformConv2d,
        "ModulatedDeformConv2dPack": ModulatedDeformConv2dPack,
        "deform_conv2d": mmcv_deform_conv2d,
        "modulated_deform_conv2d": modulated_deform_conv2d,
    },
}
MODULES["DCNv2.dcn_v2"] = MODULES["dcn_v2"]
"""What `install` puts there, by module."""


def install(*names: str) -> None:
    """Makes imports of the extensions find what is here.

    Args:
        names: modules, in place of all of `MODULES`; others' paths to `dcn_v2.py`, too, as
            "models.networks.DCNv2.dcn_v2".

    Raises:
        ValueError: a name ends in no module that is known.
    """
    for name in names or MODULES:
        known = next((each for each in MODULES if name == each or name.endswith(f".{each}")), None)
        if known is None:
            raise ValueError(f"found {name}, expected a module that ends in one of {', '.join(MODULES)}")
        parent, _, last = name.rpartition(".")
        if parent and parent not in sys.modules and importlib.util.find_spec(parent.split(".")[0]) is None:
            package = ModuleType(parent)
            package.__path__ = []
            sys.modules[parent] = package
        module = ModuleType(name)
        vars(module).update(MODULES[known], __all__=list(MODULES[known]))
        sys.modules[name] = module
        if parent in sys.modules:
            setattr(sys.modules[parent], last, module)
