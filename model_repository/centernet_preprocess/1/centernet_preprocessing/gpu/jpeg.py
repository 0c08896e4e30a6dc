"""Which JPEGs the GPU decodes as the contract says: those with nothing unusual in their headers."""

import struct
from typing import NamedTuple

import simplejpeg

from centernet_preprocessing.gpu import layout
from centernet_preprocessing.gpu.layout import APP14, CHECKED, DHT, DQT, DRI, SAMPLINGS, SOF0, SOS, Scan

SOI, EOI, APP1 = 0xD8, 0xD9, 0xE1
# Tables, restart interval, comments and APP0 to APP15: they change nothing here, but for two of the last.
HARMLESS = {DHT, DQT, DRI, 0xFE, *range(0xE0, 0xF0)}

ORIENTATION, UPRIGHT = 0x0112, 1


class Plain(NamedTuple):
    """A plain JPEG.

    Attributes:
        size: Height and width.
        scan: None if only libjpeg-turbo can say whether the file is whole.
    """

    size: tuple[int, int]
    scan: Scan | None


def parse(data: bytes) -> Plain | None:
    """What there is to know of a plain JPEG; None for everything else, which is then the CPU's.

    Plain is: baseline, 8 bits, grey or YCbCr in one scan, upright, nothing behind its end.
    """
    try:
        return _parse(data)
    except (struct.error, IndexError):
        return None


def is_whole(data: bytes) -> bool:
    """Whether libjpeg-turbo has nothing to say against a plain JPEG's scan.

    Hardware shows a damaged one as far as it comes. At an eighth of its size the scan is read as ever, and
    little else is done.
    """
    try:
        simplejpeg.decode_jpeg(data, "GRAY", strict=True, min_height=1, min_width=1)
    except ValueError:
        return False
    return True


def _parse(data: bytes) -> Plain | None:
    if data[:2] != bytes([0xFF, SOI]) or data[-2:] != bytes([0xFF, EOI]):
        return None
    size, components, position = None, b"", 2
    segments: list[tuple[int, bytes]] = []
    while True:
        lead, marker, length = struct.unpack_from(">BBH", data, position)
        segment, end = position + 4, position + 2 + length
        if lead != 0xFF or length < 2:
            return None
        if marker == SOF0:
            precision, height, width, count = struct.unpack_from(">BHHB", data, segment)
            components = data[segment + 6 : segment + 6 + 3 * count]
            if size or precision != 8 or not height or not _is_grey_or_ycbcr(components):
                return None
            size = height, width
        elif marker == SOS:
            count = data[segment]
            selection = data[segment + 1 + 2 * count : segment + 4 + 2 * count]
            if size is None or 3 * count != len(components) or selection != bytes([0, 63, 0]):
                return None
            segments.append((SOS, data[segment:end]))
            return Plain(size, layout.scan(data, end, segments))
        elif marker not in HARMLESS:
            return None
        elif marker == APP1 and data.startswith(b"Exif\0\0", segment):
            if not _is_upright(data[segment + 6 : end]):
                return None
        elif marker == APP14 and data.startswith(b"Adobe", segment) and data[segment + 11] == 0:
            return None  # RGB or CMYK
        if marker in CHECKED:
            segments.append((marker, data[segment:end]))
        position = end


def _is_grey_or_ycbcr(components: bytes) -> bool:
    identifiers, samplings = components[::3], components[1::3]
    if len(components) == 3:
        return identifiers == b"\1"
    return identifiers == b"\1\2\3" and samplings[0] in SAMPLINGS and samplings[1:] == b"\x11\x11"


def _is_upright(exif: bytes) -> bool:
    """Whether the first directory says so, or says nothing."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return False
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
        if tag == ORIENTATION:
            return value == UPRIGHT
    return True
