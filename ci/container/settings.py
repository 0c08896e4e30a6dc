"""Types of settings, for argparse: what cannot be is misuse, before anything is begun."""

import argparse
import math
import re
import shlex
from pathlib import Path


def command(text: str) -> list[str]:
    """A command and its arguments, as a shell would split them."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"found {text!r}: {error}") from error
    if not words:
        raise argparse.ArgumentTypeError("found no words, expected a command")
    return words


def seconds(text: str) -> float:
    """A time, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected seconds")
    return value


def pause(text: str) -> float:
    """A time that is more than none."""
    if not (value := seconds(text)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected more than 0 seconds")
    return value


def switch(text: str) -> bool:
    """On or off."""
    for value, words in ((True, ("1", "true", "on", "yes")), (False, ("0", "false", "off", "no", ""))):
        if text.lower() in words:
            return value
    raise argparse.ArgumentTypeError(f"found {text!r}, expected true or false")


def check_batch(parser: argparse.ArgumentParser, batch: str, version: Path) -> None:
    """Ends the program if plans for such batches could not be served from a model's version folder.

    Building one takes minutes, and Triton would say only then that it does not fit.
    """
    config = version.parent / "config.pbtxt"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    found = re.search(r"^max_batch_size: (\d+)", text, re.MULTILINE)
    largest = batch.rpartition(",")[2].strip()
    if found and largest.isdecimal() and int(largest) < int(found[1]):
        parser.error(
            f"batch: found {batch}, expected {found[1]} as the largest, max_batch_size of all models"
        )


def url(text: str) -> str:
    """An HTTP address."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected http://HOST:PORT/PATH")
    return text
