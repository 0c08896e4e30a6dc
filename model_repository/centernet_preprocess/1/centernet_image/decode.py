"""Bounded decoding of encoded pictures."""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
"""What both Pillow (which reads the header) and OpenCV (which decodes) know."""

MAX_SIDE = 32766
"""Pixels; OpenCV's warp addresses its source with 16 bits."""


class ImageError(ValueError):
    """A picture that cannot be used; its text names what was found and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a picture may cost before it is decoded.

    Attributes:
        max_bytes: Size of the encoded picture.
        max_pixels: Width times height; decoding takes three bytes for each.
        min_side: Pixels of the shorter side; less holds no object.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    min_side: int = 8


DEFAULT_LIMITS = Limits()


def decode(data: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Decodes a picture as CenterNet was trained to see it: upright, 8 bits, three channels, alpha dropped.

    Args:
        data: The encoded picture, in one of `FORMATS`.
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
    format_name = _check_header(data, limits)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise ImageError(f"found {len(data)} bytes of a damaged or truncated {format_name} picture")
    return image


def _check_header(data: bytes, limits: Limits) -> str:
    """Returns the format's name."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            format_name, (width, height) = header.format or "", header.size
    except Image.DecompressionBombError as error:
        raise ImageError(f"{error}; limit max_pixels is {limits.max_pixels}") from error
    except Exception as error:  # Pillow's readers raise nearly anything on hostile data.
        raise ImageError(
            f"found {len(data)} bytes beginning {data[:8]!r}, expected one of {', '.join(FORMATS)}"
        ) from error
    found = f"found a {format_name} picture of {width}x{height} pixels"
    if width * height > limits.max_pixels:
        raise ImageError(f"{found} = {width * height}, limit max_pixels is {limits.max_pixels}")
    if min(width, height) < limits.min_side:
        raise ImageError(f"{found}, limit min_side is {limits.min_side}")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{found}, a side may have at most {MAX_SIDE}")
    return format_name
