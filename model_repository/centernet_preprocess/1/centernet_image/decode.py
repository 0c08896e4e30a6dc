"""Bounded decoding of encoded pictures."""

import binascii
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from centernet_image.codecs import CODECS, FORMATS
from centernet_image.codecs.common import CheckSize, DamagedError, ImageError
from centernet_image.codecs.signatures import MAX_START, describe, format_of

MAX_SIDE = 32766
"""Pixels; OpenCV's warp addresses its source with 16 bits."""

# EXIF orientation to (transpose, flip code of cv2.flip), in this order.
_ORIENTATIONS: dict[int, tuple[bool, int | None]] = {
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}

_START = rb"(?:\xef\xbb\xbf)?\s*"
_DATA_URI = re.compile(_START + rb"data:[^,]*;base64,(?P<text>)", re.IGNORECASE)
# As the formats' first bytes read in base64, the alphabet for URLs included.
_BASE64 = re.compile(
    _START + rb"(?P<text>([/_]9j[/_]|iVBORw0KGgo|UklGR|Qk|SUkq|SUkr|TU0A|R0lGOD|UD[E-Z])[\w+/\s-]{24})"
)
_OF_URLS = bytes.maketrans(b"-_", b"+/")
# What base64 may have for the bytes that URLs cannot have: a few passes, while `urllib` makes a list.
_PERCENT = {form % byte: bytes([byte]) for byte in b"+/= \t\r\n-_" for form in (b"%%%02X", b"%%%02x")}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a picture may cost before it is decoded.

    Attributes:
        max_bytes: Size of the encoded picture.
        max_pixels: Width times height; decoding takes three bytes for each, progressive JPEG up to
            nine, TIFF up to twelve.
        min_side: Pixels of the shorter side; less holds no object.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64 * 2**20
    min_side: int = 8

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Limits":
        """Those among a model's parameters; the others by default."""
        own = cls.__dataclass_fields__.keys() & parameters.keys()
        return cls(**{name: int(parameters[name]) for name in own})


DEFAULT_LIMITS = Limits()


def decode(data: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Decodes a picture as CenterNet was trained to see it: upright, 8 bits, three channels, alpha dropped.

    Args:
        data: The encoded picture, in one of `FORMATS`, or its base64 text, of either alphabet, with or
            without `data:` in front.
        limits: Checked against the data's size and its header, before any pixel is decoded.

    Returns:
        BGR, uint8, [height, width, 3].

    Raises:
        ImageError: The data is empty, too large, not a picture, or damaged.
    """
    if not data:
        raise ImageError("found 0 bytes, expected an encoded picture")
    if len(data) > limits.max_bytes:
        raise ImageError(f"found {len(data)} bytes, limit max_bytes is {limits.max_bytes}")
    name = format_of(data)
    if name is None:
        data = _without_base64(data)
        name = format_of(data)
    if name is None:
        raise _unknown(data[:MAX_START], len(data))
    try:
        image, orientation = CODECS[name](data, _size_check(name, limits))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{error}; Pillow's limit is Image.MAX_IMAGE_PIXELS") from error
    # Numbers that are not there or make no sense, and what the libraries raise.
    except (ValueError, IndexError, OverflowError, OSError, EOFError, struct.error, cv2.error) as error:
        reason = f": {error}" if isinstance(error, DamagedError) else ""
        raise ImageError(
            f"found {len(data)} bytes of a damaged or truncated {name} picture{reason}"
        ) from error
    if orientation in _ORIENTATIONS:
        transposed, flip = _ORIENTATIONS[orientation]
        image = cv2.transpose(image) if transposed else image
        image = image if flip is None else cv2.flip(image, flip)
    return image


def begins_like_a_picture(start: bytes) -> bool:
    """Whether data may be one of `FORMATS`, or base64 text of one, by their first `MAX_START` bytes."""
    return format_of(start) is not None or _base64_of(start) is not None


def _size_check(name: str, limits: Limits) -> CheckSize:
    def check(width: int, height: int) -> None:
        found = f"found a {name} picture of {width}x{height} pixels"
        if width * height > limits.max_pixels:
            raise ImageError(f"{found} = {width * height}, limit max_pixels is {limits.max_pixels}")
        if min(width, height) < limits.min_side:
            raise ImageError(f"{found}, limit min_side is {limits.min_side}")
        if max(width, height) > MAX_SIDE:
            raise ImageError(f"{found}, a side may have at most {MAX_SIDE}")

    return check


def _unknown(start: bytes, size: int) -> ImageError:
    return ImageError(f"found {describe(start, size)}, expected one of {', '.join(FORMATS)}")


def _without_base64(data: bytes) -> bytes:
    """What base64 text stands for; anything else as it is."""
    found = _base64_of(data)
    if found is None:
        return data
    text = data[found.start("text") :]
    if b"%" in text:
        for written, byte in _PERCENT.items():
            text = text.replace(written, byte)
    text = text.translate(None, b" \t\r\n")
    if b"+" not in text and b"/" not in text:
        text = text.translate(_OF_URLS)
    start = text[: MAX_START // 3 * 4]
    try:
        if format_of(_from_base64(start)) is None:
            raise _unknown(_from_base64(start), len(text) * 3 // 4)
        return _from_base64(text)
    except binascii.Error as error:
        raise ImageError(f"found {len(data)} bytes of damaged base64 text: {error}") from error


def _base64_of(data: bytes) -> re.Match[bytes] | None:
    return _DATA_URI.match(data, 0, MAX_START) or _BASE64.match(data, 0, MAX_START)


def _from_base64(text: bytes) -> bytes:
    return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
