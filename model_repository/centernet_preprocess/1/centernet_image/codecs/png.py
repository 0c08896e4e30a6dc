"""PNG. The decoder sees a still picture of the chunks that make pixels, and no others."""

import struct
import zlib

import numpy as np

from centernet_image.codecs.common import (
    MAX_PARTS,
    CheckSize,
    DamagedError,
    ImageError,
    exif_orientation,
    inflated,
    opencv,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
_SAMPLES = (1, 0, 3, 1, 2, 0, 4)
"""Of a pixel, by the header's colour type."""

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of each pass: the first column and row, and how far the next ones are."""

PLAUSIBLE = 50
"""Bytes of pixels for one of Deflate; more are counted first: a few bytes are to cost little."""


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes the still picture; that of an animation is its first where it is shown at all."""
    orientation, position, kind = None, len(SIGNATURE), b""
    kept: list[bytes | memoryview] = [SIGNATURE]
    view, needed, deflated = memoryview(data), 0, 0
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        content = position + 8
        end = content + length + 4
        if end > len(data):
            raise DamagedError(f"a chunk claims {length} bytes, {max(0, len(data) - content)} are there")
        if (kind == b"IHDR") != (len(kept) == 1):
            raise DamagedError("its header is not its first chunk")
        if kind in _PIXELS or kind in _ANIMATION:
            (checksum,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(view[position + 4 : end - 4]) != checksum:
                raise DamagedError("a chunk does not fit its checksum")
        if kind == b"IHDR":
            width, height, bits, color, _, _, lace = struct.unpack_from(">IIBBBBB", data, content)
            check(width, height)
            needed = _bytes_of_rows(width, height, bits * _SAMPLES[color], interlaced=lace == 1)
        elif kind == b"IDAT":
            deflated += length
        if kind in _PIXELS:
            kept.append(view[position:end])
        elif kind == b"eXIf" and orientation is None:
            orientation = exif_orientation(data[content : end - 4])
        position = end
        if kind == b"IEND":
            if deflated * PLAUSIBLE < needed:
                _expect(needed, b"".join(chunk[8:-4] for chunk in kept if chunk[4:8] == b"IDAT"))
            return opencv(b"".join(kept)), orientation or 1
    raise ImageError(f"found a PNG picture of more than {MAX_PARTS} chunks, limit is {MAX_PARTS}")


def _bytes_of_rows(width: int, height: int, bits: int, *, interlaced: bool) -> int:
    """Bytes of all rows of pixels of so many bits, each row's filter in front of it."""
    total = 0
    for left, top, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // across), -((top - height) // down)
        total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return total


def _expect(needed: int, deflated: bytes) -> None:
    found = 0
    for piece in inflated(deflated):
        found += len(piece)
        if found >= needed:
            return
    raise DamagedError(f"its pixels need {needed} bytes, {found} are there")
