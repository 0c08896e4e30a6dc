"""What the codecs share.

A codec takes an encoded picture and `CheckSize`, which it calls with the header's width and height before it
spends time or memory on them. It holds every length against the bytes that are there, and hands a decoding
library only what it has checked.
"""

import struct
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from isal import isal_zlib
from PIL import Image

CheckSize = Callable[[int, int], None]
"""Takes width and height; raises ImageError if they are beyond the limits."""

Codec = Callable[[bytes, CheckSize], tuple[np.ndarray, int]]
"""Returns BGR, uint8 [height, width, 3] as stored, and the EXIF orientation, 1 to 8."""

MAX_PARTS = 65_536
"""Chunks or blocks that one file may have: walking them costs time, whatever their size."""

AT_ONCE = 2**16
"""Bytes of Deflate, and of what it stands for: what stays in the processor's cache."""

MAX_EXIF_TAGS = 4096
ROWS_AT_ONCE = 16

_ORIENTATION = 0x0112
_INTEGERS = {3: "H", 4: "I"}

# OpenCV would write lines of its own beside the error that is raised.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class ImageError(ValueError):
    """A picture that cannot be used; its text names what was found and what was expected."""


class DamagedError(ValueError):
    """Bytes are missing or contradict each other; the text says which."""


def opencv(data: bytes | memoryview) -> np.ndarray:
    """Decodes without looking at the orientation.

    Raises:
        DamagedError: OpenCV cannot.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_BGR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise DamagedError("its pixels cannot be decoded")
    return image


def has_row(data: bytes, length: int, start: int = 0, end: int | None = None) -> bool:
    """Whether so many zeros, or bytes of ones, follow each other: what is there where data were lost."""
    return any(data.find(bytes([value]) * length, start, end) >= 0 for value in (0, 255))


def inflated(part: bytes | memoryview) -> Iterator[bytes]:
    """What Deflate stands for, bit by bit: it may be the whole picture."""
    stream = isal_zlib.decompressobj()
    try:
        for start in range(0, len(part), AT_ONCE):
            pending: bytes | memoryview = part[start : start + AT_ONCE]
            while pending and not stream.eof:
                yield stream.decompress(pending, AT_ONCE)
                pending = stream.unconsumed_tail
        yield stream.flush()
    except isal_zlib.IsalError as error:  # type: ignore[misc]  # its stub types the class as an instance
        raise DamagedError(str(error)) from error
    if not stream.eof:
        raise DamagedError("its compressed data have no end")


def to_bgr(picture: Image.Image) -> np.ndarray:
    """Pillow's pixels, a band of rows at a time: each copy is three or four bytes for a pixel."""
    width, height = picture.size
    image = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, ROWS_AT_ONCE):
        band = picture.crop((0, top, width, min(top + ROWS_AT_ONCE, height))).convert("RGB")
        cv2.cvtColor(np.asarray(band), cv2.COLOR_RGB2BGR, dst=image[top : top + ROWS_AT_ONCE])
    return image


def exif_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block: a TIFF header, perhaps after `Exif`, and its directory; else 1."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for index in range(min(count, MAX_EXIF_TAGS)):
            entry = directory + 2 + 12 * index
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == _ORIENTATION and kind in _INTEGERS:
                (value,) = struct.unpack_from(order + _INTEGERS[kind], exif, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # Damaged metadata do not make a damaged picture.
    return 1
