"""Options that say what a network wants of a picture: `--mean --std --layout --color --fit --size`."""

import argparse
import re
from collections.abc import Sequence

from centernet_image.contract import NORMALISATIONS
from centernet_image.picture_tensor import COLORS, FITS, LAYOUTS, PictureTensor

from export.errors import UsageError
from export.normalisation import numbers

NAMED = {name: NORMALISATIONS[name] for name in ("imagenet", "none")}
"""Of red, green and blue, whatever the order of the channels."""
_OPTIONS = ("mean", "std", "layout", "color", "fit", "size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a command."""
    group = parser.add_argument_group("pictures, for a network that this project did not export")
    numbers = "one number a channel, for pixels / 255 in the order of --color; or imagenet, none"
    group.add_argument("--mean", help=numbers)
    group.add_argument("--std", help=numbers)
    group.add_argument("--layout", choices=LAYOUTS, help="default: where the input has its channels")
    group.add_argument("--color", choices=COLORS, help="default: rgb, or gray for an input of one channel")
    group.add_argument("--fit", choices=FITS, help="how a picture gets the network's size (default stretch)")
    group.add_argument("--size", metavar="HxW", help="for an input whose height and width are open")


def given(options: argparse.Namespace) -> bool:
    """Whether any of the options is."""
    return any(getattr(options, name) is not None for name in _OPTIONS)


def picture_tensor(
    options: argparse.Namespace,
    name: str,
    sides: Sequence[int | str],
    dtype: str,
    usual_size: Sequence[int] | None = None,
) -> PictureTensor:
    """What an input wants, by the options and by what its shape says.

    Args:
        options: of a command with `add_arguments`.
        name: the input's, for messages.
        sides: its shape with the batch; texts are open dimensions.
        dtype: as Triton writes it.
        usual_size: the usual shape of an open input, with the batch.

    Raises:
        UsageError: the input is no picture, or the options do not fit it or say too little.
    """
    if len(sides) != 4 or dtype not in ("FP32", "FP16", "UINT8"):
        raise UsageError(
            f"input {name} is {dtype} {list(sides)}, expected FP32, FP16 or UINT8 of four dimensions: "
            "no picture can be fed to it; give .npz or .npy files"
        )
    guesses = [layout for layout, axis in (("nchw", 1), ("nhwc", 3)) if sides[axis] in (1, 3)]
    layout = options.layout or next(iter(guesses), None)
    if layout is None:
        raise UsageError(f"input {name} has shape {list(sides)}, expected 1 or 3 channels: say --layout")
    channels = sides[1 if layout == "nchw" else 3]
    color = options.color or ("gray" if channels == 1 else "rgb")
    expected = 1 if color == "gray" else 3
    if isinstance(channels, int) and channels != expected:
        raise UsageError(
            f"input {name} has shape {list(sides)}: found {channels} channels, expected {expected} for "
            f"--color {color} and --layout {layout}"
        )
    axes = (2, 3) if layout == "nchw" else (1, 2)
    size = _size(
        options.size,
        name,
        [sides[axis] for axis in axes],
        [usual_size[a] for a in axes] if usual_size else None,
    )
    if dtype == "UINT8":
        if options.mean or options.std:
            raise UsageError(
                f"--mean, --std: found input {name} of UINT8, expected a float one: leave them out"
            )
        mean, std = (0.0,) * expected, (1.0,) * expected
    else:
        mean, std = (_numbers(options, which, color) for which in ("mean", "std"))
    return PictureTensor(
        size=size, mean=mean, std=std, layout=layout, color=color, fit=options.fit or "stretch", dtype=dtype
    )


def _size(text: str | None, name: str, sides: list[int | str], usual: list[int] | None) -> tuple[int, int]:
    if text is not None:
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        if not match or not all(map(int, match.groups())):
            raise UsageError(f"--size: found {text}, expected height and width, for example 512x512")
        size = [int(number) for number in match.groups()]
    elif all(isinstance(side, int) for side in sides):
        size = [int(side) for side in sides]
    elif usual is not None:
        size = usual
    else:
        raise UsageError(f"input {name} has open sides {sides}: say the size of its pictures by --size HxW")
    for side, number in zip(sides, size, strict=True):
        multiple = re.fullmatch(r"(\d+)\*\w+", side) if isinstance(side, str) else None
        if (isinstance(side, int) and side != number) or (multiple and number % int(multiple[1])):
            raise UsageError(f"--size: found {size[0]}x{size[1]}, expected what input {name} has: {sides}")
    return size[0], size[1]


def _numbers(options: argparse.Namespace, which: str, color: str) -> tuple[float, ...]:
    count = 1 if color == "gray" else 3
    text = getattr(options, which) or getattr(options, "std" if which == "mean" else "mean")
    if text is None or (getattr(options, which) is None and text not in NAMED):
        raise UsageError(
            f"--{which}: found none, expected {count} numbers for pixels / 255, imagenet or none: it must be "
            "what the network was trained with, which its file does not say"
        )
    if text in NAMED:
        values = getattr(NAMED[text], which)
        if color == "gray":
            return (sum(values) / 3,)
        return values if color == "rgb" else values[::-1]
    expected = f"{count} numbers for pixels / 255 in {color} order, imagenet or none"
    return numbers(f"--{which}", text, count, expected)
