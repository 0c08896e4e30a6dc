"""Which font a class name can be drawn with."""

from __future__ import annotations

import logging
import re
import unicodedata
from functools import cache
from pathlib import Path

from PIL import ImageFont, features

LOGGER = logging.getLogger(__name__)
BESIDES = " .#0123456789"
"""What a caption has beside the name."""

STYLES = "serif|mono|bold|italic|oblique|light|thin|black|medium|condensed"
"""Of fonts that are taken if no plain one has the characters."""


@cache
def font_for(name: str) -> str | None:
    """The font for a caption of this name: a file, or "" for Pillow's own.

    Returns:
        None if no installed font can show it, which is said once.
    """
    if name.isascii() and name.isprintable():
        return ""
    # Whether a font shows something of its own for a character, only its table says.
    visible = [char for char in name + BESIDES if not _is_silent(char)]
    if _can_be_laid_out(name) and all(map(str.isprintable, visible)):
        for path in _installed():
            if _has(path, visible):
                return path
    LOGGER.warning("no installed font shows the class name %r: drawings have its number instead", name)
    return None


def _is_silent(char: str) -> bool:
    """Spaces, joiners and variation selectors show nothing."""
    return char.isspace() or unicodedata.category(char) == "Cf" or 0xFE00 <= ord(char) <= 0xFE0F


def _can_be_laid_out(name: str) -> bool:
    """Scripts whose letters join, combine or run from the right want HarfBuzz and FriBiDi."""
    simple = not any(
        unicodedata.bidirectional(char) in ("R", "AL") or unicodedata.category(char).startswith("M")
        for char in name
        if not _is_silent(char)
    )
    return simple or bool(features.check("raqm") and features.check("fribidi"))


@cache
def _installed() -> list[str]:
    """The fonts of this machine, plain ones first, and before them the one that comes with matplotlib."""
    import matplotlib
    from matplotlib import font_manager

    def plainness(path: str) -> tuple[bool, str]:
        return bool(re.search(STYLES, Path(path).stem, re.IGNORECASE)), Path(path).stem

    own = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    # Fonts of last resort have a box for everything.
    found = [path for path in font_manager.findSystemFonts() if "lastresort" not in path.lower()]
    return [str(own), *sorted(found, key=plainness)]


def _has(path: str, characters: list[str]) -> bool:
    """Whether a font has glyphs for all characters, and ink in them, at any size."""
    from matplotlib.ft2font import FT2Font

    try:
        table = FT2Font(path)
        if not all(table.get_char_index(ord(char)) for char in characters):
            return False
        font = ImageFont.truetype(path, 20)  # Colour bitmaps have one size alone.
        return all(font.getmask(char).getbbox() for char in characters)
    except (OSError, RuntimeError, ValueError):
        return False
