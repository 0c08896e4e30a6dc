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
    opencv,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes the still picture; that of an animation is its first where it is shown at all."""
    orientation, position, kind = None, len(SIGNATURE), b""
    kept: list[bytes | memoryview] = [SIGNATURE]
    view = memoryview(data)
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
            check(*struct.unpack_from(">II", data, content))
        if kind in _PIXELS:
            kept.append(view[position:end])
        elif kind == b"eXIf" and orientation is None:
            orientation = exif_orientation(data[content : end - 4])
        position = end
        if kind == b"IEND":
            return opencv(b"".join(kept)), orientation or 1
    raise ImageError(f"found a PNG picture of more than {MAX_PARTS} chunks, limit is {MAX_PARTS}")
