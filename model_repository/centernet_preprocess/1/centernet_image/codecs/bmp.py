"""Windows bitmaps."""

import struct

import numpy as np

from centernet_image.codecs.common import CheckSize, DamagedError, ImageError, opencv

_RAW = (0, 3)
_RUN_LENGTHS = {1: 8, 2: 4}


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes bitmaps of 1 to 32 bits a pixel, plain or run-length encoded."""
    pixels, header_size = struct.unpack_from("<II", data, 10)
    compression = size = 0
    if header_size == 12:
        width, height, _, bits = struct.unpack_from("<HhHH", data, 18)
    elif header_size >= 40:
        width, height, _, bits, compression, size = struct.unpack_from("<iiHHII", data, 18)
    else:
        raise DamagedError(f"its header claims {header_size} bytes")
    height = abs(height)
    if width <= 0:
        raise DamagedError(f"its width is {width}")
    check(width, height)
    if compression in _RUN_LENGTHS:
        if bits != _RUN_LENGTHS[compression]:
            raise DamagedError(f"run lengths of {bits} bits a pixel")
        if pixels + size > len(data) or not data[: pixels + size].rstrip(b"\0").endswith(b"\0\1"):
            raise DamagedError("its run lengths have no end")
    elif compression in _RAW:
        size = (width * bits + 31) // 32 * 4 * height
    else:
        raise ImageError(f"found a BMP picture of compression {compression}, expected 0 to 3")
    if pixels < 14 + header_size or pixels + size > len(data):
        raise DamagedError(f"its pixels need {size} bytes, {max(0, len(data) - pixels)} are there")
    return opencv(data), 1
