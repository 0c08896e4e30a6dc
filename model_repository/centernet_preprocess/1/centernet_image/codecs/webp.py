"""WebP. The decoder sees the first picture without transparency, metadata and animation."""

import struct
from collections.abc import Iterator

import numpy as np

from centernet_image.codecs.common import (
    MAX_PARTS,
    CheckSize,
    DamagedError,
    ImageError,
    exif_orientation,
    has_row,
    opencv,
)

_PIXELS = (b"VP8 ", b"VP8L")
_HOLE = 64
"""Zeros in a row, or bytes of ones, that are looked into."""


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes lossy and lossless pictures, and an animation's first onto its black canvas."""
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise DamagedError(f"it claims {size + 8} bytes, {len(data)} are there")
    canvas: tuple[int, int] | None = None
    orientation: int | None = None
    place, picture = (0, 0), b""
    for kind, start, end in _chunks(data, 12, size + 8):
        if kind == b"VP8X":
            canvas = _uint24(data, start + 4) + 1, _uint24(data, start + 7) + 1
            check(*canvas)
        elif kind == b"EXIF" and orientation is None:
            orientation = exif_orientation(data[start:end])
        elif kind == b"ANMF" and not picture:
            place = 2 * _uint24(data, start), 2 * _uint24(data, start + 3)
            for inner, inner_start, inner_end in _chunks(data, start + 16, end):
                if inner in _PIXELS and not picture:
                    picture = data[inner_start - 8 : inner_end]
        elif kind in _PIXELS and not picture:
            picture = data[start - 8 : end]
    if not picture:
        raise DamagedError("it holds no pixels")
    width, height = _size(picture)
    check(width, height)
    if has_row(picture, _HOLE) and _is_whole_without_end(picture):
        raise DamagedError("there is a hole in its pixels")
    image = opencv(_file(picture))
    if canvas is None or canvas == (width, height):
        return image, orientation or 1
    (left, top), (canvas_width, canvas_height) = place, canvas
    if left + width > canvas_width or top + height > canvas_height:
        raise DamagedError("its first picture is larger than its canvas")
    whole = np.zeros((canvas_height, canvas_width, 3), np.uint8)
    whole[top : top + height, left : left + width] = image
    return whole, orientation or 1


def _file(picture: bytes) -> bytes:
    """A file of nothing but these pixels."""
    padded = picture + bytes(len(picture) % 2)
    return b"RIFF" + struct.pack("<I", len(padded) + 4) + b"WEBP" + padded


def _is_whole_without_end(picture: bytes) -> bool:
    """Whether the decoder has enough pixels before it comes to the end, as a hole makes it: few bits each."""
    content = picture[8:-_HOLE]
    try:
        opencv(_file(picture[:4] + struct.pack("<I", len(content)) + content))
    except DamagedError:
        return False
    return True


def _chunks(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk's content."""
    for _ in range(MAX_PARTS):
        if position + 8 > end:
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if start + length > end:
            raise DamagedError(f"a chunk claims {length} bytes, {end - start} are there")
        yield kind, start, start + length
        position = start + length + length % 2
    raise ImageError(f"found a WEBP picture of more than {MAX_PARTS} chunks, limit is {MAX_PARTS}")


def _size(picture: bytes) -> tuple[int, int]:
    """Width and height in the header of a chunk's bit stream."""
    if picture[:4] == b"VP8L":
        signature, bits = struct.unpack_from("<BI", picture, 8)
        if signature != 0x2F:
            raise DamagedError("its pixels have no header")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if picture[11:14] != b"\x9d\x01\x2a":
        raise DamagedError("its pixels have no header")
    width, height = struct.unpack_from("<HH", picture, 14)
    return width & 0x3FFF, height & 0x3FFF


def _uint24(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 3], "little")
