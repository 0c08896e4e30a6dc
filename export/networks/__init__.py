"""CenterNet's networks, with the original's parameter names and shapes."""

from collections.abc import Callable, Sequence
from functools import partial

from export.networks.dla import STEMS
from export.networks.dla_34 import DLA34, DLAv034
from export.networks.layers import CenterNet, Heads
from export.networks.mobilenetv2 import STEM, MobileNetV2
from export.networks.resdcn import BLOCKS, ResDCN

ARCHITECTURES: dict[str, Callable[..., CenterNet]] = {
    "dla_34": DLA34,
    "dlav0_34": DLAv034,
    **{f"resdcn_{depth}": partial(ResDCN, depth) for depth in BLOCKS},
    "mobilenetv2": MobileNetV2,
}
_RESDCN = {arch: 64 for arch in ARCHITECTURES if arch.startswith("resdcn")}

STEM_CHANNELS = {"dla_34": 16, "dlav0_34": 16, **_RESDCN, "mobilenetv2": STEM}
"""Channels of the first convolution at width 1; every other count grows with it."""

HEAD_CHANNELS = {"dla_34": 256, "dlav0_34": 256, **_RESDCN, "mobilenetv2": 24}
"""Channels between a head's two convolutions at width 1; of mobilenetv2, in front of its only one."""

HEAD_CHANNELS_IN = {"mobilenetv2": "dla_up.conv_last.0.weight"}
"""The weight with as many outputs, where it is not each head's first."""


WITH_STEMS = ("dla_34",)
"""Architectures that may read more than the picture: any of `STEMS`."""


def create(
    arch: str, heads: Heads, *, width: float = 1, head_channels: int | None = None, stems: Sequence[str] = ()
) -> CenterNet:
    """Makes a network, initialised for training from scratch.

    Args:
        arch: One of `ARCHITECTURES`.
        heads: Channels of each output, by name, in the order of the outputs.
        width: Factor on all channel counts; it must leave the first convolution a whole number of them.
        head_channels: As in `HEAD_CHANNELS`; 0 between them for a single convolution. Without it the
            original's own number, times `width`.
        stems: Inputs beyond the picture, some of `STEMS`, for architectures `WITH_STEMS`.

    Raises:
        ValueError: Unknown architecture, impossible width, or stems that it cannot have.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}, expected one of {', '.join(ARCHITECTURES)}")
    channels = STEM_CHANNELS[arch] * width
    if channels < 1 or channels != int(channels):
        raise ValueError(f"width {width} gives {arch} {channels} channels, expected a whole number")
    if head_channels is None:
        head_channels = int(HEAD_CHANNELS[arch] * width)
    further = {"stems": tuple(stem for stem in STEMS if stem in stems)} if stems else {}
    if further and (arch not in WITH_STEMS or not {*stems} <= STEMS.keys()):
        raise ValueError(f"found stems {', '.join(stems)} for {arch}, expected none")
    return ARCHITECTURES[arch](heads, channels=int(channels), head_channels=head_channels, **further)
