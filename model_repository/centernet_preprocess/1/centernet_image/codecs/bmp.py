"""Windows bitmaps."""

import struct

import numpy as np

from centernet_image.codecs.common import CheckSize, DamagedError, ImageError, opencv

_PLAIN, _BIT_FIELDS = 0, 3
_RUN_LENGTHS = {1: 8, 2: 4}
_MOST_PIXELS = 255
"""That two bytes of run lengths stand for."""
_MASKS_END = 66
_BITS = {_PLAIN: (1, 4, 8, 16, 24, 32), _BIT_FIELDS: (16, 32)}
_BGRX, _555 = (0xFF0000, 0xFF00, 0xFF), (0x7C00, 0x3E0, 0x1F)


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes bitmaps of 1 to 32 bits a pixel: plain, of any masks, or run-length encoded."""
    pixels, header_size = struct.unpack_from("<II", data, 10)
    compression = size = 0
    if header_size == 12:
        width, height, _, bits = struct.unpack_from("<HhHH", data, 18)
    elif header_size >= 40:
        width, height, _, bits, compression, size = struct.unpack_from("<iiHHII", data, 18)
    else:
        raise DamagedError(f"its header claims {header_size} bytes")
    step, height = -1 if height > 0 else 1, abs(height)
    if width <= 0:
        raise DamagedError(f"its width is {width}")
    check(width, height)
    if pixels < max(14 + header_size, _MASKS_END if compression == _BIT_FIELDS else 0):
        raise DamagedError(f"its pixels begin at byte {pixels}, within its header")
    if compression in _RUN_LENGTHS:
        if bits != _RUN_LENGTHS[compression]:
            raise DamagedError(f"run lengths of {bits} bits a pixel")
        return opencv(_without_end(data, pixels, size, width * height)), 1
    if compression not in _BITS:
        raise ImageError(f"found a BMP picture of compression {compression}, expected 0 to 3")
    if bits not in _BITS[compression]:
        expected = ", ".join(map(str, _BITS[compression]))
        raise ImageError(f"found a BMP picture of {bits} bits a pixel, expected one of {expected}")
    stride = (width * bits + 31) // 32 * 4
    if pixels + stride * height > len(data):
        raise DamagedError(f"its pixels need {stride * height} bytes, {max(0, len(data) - pixels)} are there")
    masks = _555 if bits == 16 else _BGRX
    if compression == _BIT_FIELDS:
        masks = struct.unpack_from("<III", data, _MASKS_END - 12)
    if bits == 16 or masks != _BGRX:
        words = np.frombuffer(data, f"<u{bits // 8}", stride * height * 8 // bits, pixels)
        return _by_masks(words.reshape(height, -1)[::step, :width], masks), 1
    return opencv(data), 1


def _without_end(data: bytes, pixels: int, size: int, count: int) -> bytes:
    """The file up to its end marker: with that, OpenCV takes rows that are lost for black ones."""
    content = data[: pixels + size].rstrip(b"\0")
    if pixels + size > len(data) or not content.endswith(b"\0\1"):
        raise DamagedError("its run lengths have no end")
    if size // 2 * _MOST_PIXELS < count:
        raise DamagedError(f"{size} bytes of run lengths are too few for {count} pixels")
    return content[:-2]


def _by_masks(rows: np.ndarray, masks: tuple[int, int, int]) -> np.ndarray:
    """Pixels whose red, green and blue are the bits of these masks; OpenCV knows a few of them."""
    image = np.empty((*rows.shape, 3), np.uint8)
    for channel, mask in zip((2, 1, 0), masks, strict=True):
        # The upper 8 bits, if there are more.
        shift = max((mask & -mask).bit_length() - 1, mask.bit_length() - 8)
        top = mask >> shift if mask else 0
        if not top or top & (top + 1) or mask >> 8 * rows.itemsize:
            raise ImageError(f"found a BMP picture of a mask {mask:#x}, expected bits that are neighbours")
        levels = ((np.arange(top + 1) * 255 + top // 2) // top).astype(np.uint8)
        for row, target in zip(rows, image[..., channel], strict=True):
            np.take(levels, row >> shift & top, out=target, mode="clip")
    return image
