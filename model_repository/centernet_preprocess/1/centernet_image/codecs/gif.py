"""GIF: the first picture of it, by Pillow."""

import io
import struct

import cv2
import numpy as np
from PIL import Image

from centernet_image.codecs.common import CheckSize, DamagedError, ImageError

MAX_BLOCKS = 2**18
"""Of at most 255 bytes each; encoders fill them."""

_EXTENSION, _PICTURE, _END = 0x21, 0x2C, 0x3B


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes the first picture onto its canvas, transparency dropped."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    check(width, height)
    head = position = 13 + _palette_bytes(flags)
    blocks = 0
    while data[position] == _EXTENSION:
        position, count = _skip_blocks(data, position + 2)
        blocks += count
        if blocks > MAX_BLOCKS:
            raise _too_many()
    if data[position] != _PICTURE:
        raise DamagedError("it holds no picture")
    left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", data, position + 1)
    if left + frame_width > width or top + frame_height > height:
        raise DamagedError("its first picture is larger than its canvas")
    end, _ = _skip_blocks(data, position + 11 + _palette_bytes(flags))
    # Only what makes the picture: no comments, no further pictures.
    still = data[:head] + data[position:end] + bytes([_END])
    with Image.open(io.BytesIO(still), formats=["GIF"]) as picture:
        picture.load()
        palette = np.zeros((256, 3), np.uint8)
        if picture.mode == "L":
            palette[:] = np.arange(256)[:, None]
        else:
            colors = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette[: len(colors)] = colors[:, ::-1]
        return cv2.applyColorMap(np.asarray(picture), palette[:, None]), 1


def _palette_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_blocks(data: bytes, position: int) -> tuple[int, int]:
    """Where the blocks that begin here end, and how many there are."""
    for count in range(MAX_BLOCKS):
        length = data[position]
        position += 1 + length
        if not length:
            return position, count
    raise _too_many()


def _too_many() -> ImageError:
    return ImageError(f"found a GIF picture of more than {MAX_BLOCKS} blocks, limit is {MAX_BLOCKS}")
