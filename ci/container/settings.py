"""Types of settings, for argparse: what cannot be is misuse, before anything is begun."""

import argparse
import math
import shlex


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


def url(text: str) -> str:
    """An HTTP address."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected http://HOST:PORT/PATH")
    return text
