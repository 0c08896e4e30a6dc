"""`--mean` and `--std` of the command line."""

import math
import re

from centernet_image.contract import NORMALISATIONS, Normalisation

from export.errors import UsageError

EXPECTED = (
    "three numbers for pixels / 255 in the order of --color, for example 0.408,0.447,0.470, "
    f"or a name: {', '.join(NORMALISATIONS)}"
)


def parse(mean: str | None, std: str | None) -> Normalisation | None:
    """Makes a normalisation of the texts of `--mean` and `--std`; None without them.

    A name stands for both; with numbers for one, the other must be given, too.

    Raises:
        UsageError: A text is no name and no three numbers of the right range, or one is missing.
    """
    if mean is None and std is None:
        return None
    named = NORMALISATIONS.get(mean or "") or NORMALISATIONS.get(std or "")
    if named is None and (mean is None or std is None):
        given, other = ("--mean", "--std") if std is None else ("--std", "--mean")
        _numbers(given, (mean or std or ""))
        raise UsageError(f"{given}: found numbers without {other}: give both, or a name for both")
    return Normalisation(
        named.mean if mean is None and named else _numbers("--mean", mean or ""),
        named.std if std is None and named else _numbers("--std", std or ""),
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    if text in NORMALISATIONS:
        return getattr(NORMALISATIONS[text], option.removeprefix("--"))
    return numbers(option, text, 3, EXPECTED)


def numbers(option: str, text: str, count: int, expected: str) -> tuple[float, ...]:
    """The numbers of `--mean` or `--std`.

    Raises:
        UsageError: They are not so many, or not for pixels / 255.
    """
    try:
        values = tuple(float(part) for part in re.split(r"[,\s]+", text.strip()))
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UsageError(f"{option}: found {text}, expected {expected}")
    low_open = option == "--std"
    if max(values) > 1 or min(values) < 0 or (low_open and min(values) == 0):
        limits = "above 0 and at most 1" if low_open else "0 to 1"
        raise UsageError(
            f"{option}: found {text}, expected numbers of {limits}: they are for pixels / 255; "
            "divide those for 0 to 255 by 255"
        )
    return values
