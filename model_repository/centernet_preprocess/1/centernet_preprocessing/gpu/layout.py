"""Where the scan of a plain JPEG is and what it should hold, if nothing but it can be wrong with the file."""

import struct
from typing import NamedTuple

from centernet_preprocessing.gpu import huffman
from centernet_preprocessing.gpu.huffman import Coding

SOF0, SOS, DHT, DQT, DRI = 0xC0, 0xDA, 0xC4, 0xDB, 0xDD
APP0, APP2, APP14 = 0xE0, 0xE2, 0xEE
CHECKED = {SOF0, SOS, DHT, DQT, DRI, APP0, APP2, APP14}
"""Segments in which libjpeg-turbo may find something amiss."""

SAMPLINGS = (0x11, 0x21, 0x12, 0x22)
"""Of the brightness, by that of the colours: 4:4:4, 4:2:2, 4:4:0, 4:2:0."""

MAX_SIDE = 65500
JFIF, ICC, ADOBE = b"JFIF\0", b"ICC_PROFILE\0", b"Adobe"
ONE = b"\1"
"""The first version; brightness and colours; the first part of one."""


class Scan(NamedTuple):
    """A scan that the GPU can check.

    Attributes:
        start, end: Of its bytes in the file; without a last zero behind FF.
        blocks: That it should have.
        coding: Of these blocks.
    """

    start: int
    end: int
    blocks: int
    coding: Coding

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start


def scan(data: bytes, start: int, segments: list[tuple[int, bytes]]) -> Scan | None:
    """Describes the scan of a plain JPEG.

    Args:
        data: The file, which ends with EOI.
        start: Of the scan.
        segments: Markers, and what follows their lengths, of those before it that are `CHECKED`.

    Returns:
        None if libjpeg-turbo must judge: it would say something of the headers, the scan has restart markers,
        or the kernel cannot read it.
    """
    found: dict[int, list[bytes]] = {}
    for marker, segment in segments:
        found.setdefault(marker, []).append(segment)
    (frame,), (header,) = found[SOF0], found[SOS]
    if len(frame) < 6 or len(frame) != 6 + 3 * frame[5] or len(header) != 4 + 2 * frame[5]:
        return None
    height, width = struct.unpack_from(">HH", frame, 1)
    components, selectors = frame[6:], header[1:-3]
    samplings, end = components[1::3], len(data) - 2
    tables = tuple(found.get(DHT, ()))
    if (
        components[::3] != selectors[::2]
        or samplings[0] not in SAMPLINGS
        or max(height, width) > MAX_SIDE
        or not set(components[2::3]) <= _quantisers(found.get(DQT, []))
        or any(segment != b"\0\0" for segment in found.get(DRI, []))
        or not _is_known(found)
        or sum(map(len, tables)) > huffman.MAX_BYTES
        or start >= end
        or data[end - 1] == 0xFF  # Of a marker, then.
    ):
        return None
    coding = huffman.coding(tables, selectors[1::2], samplings)
    if coding is None:
        return None
    if data[end - 2 : end] == b"\xff\0":
        end -= 1  # What only says that FF is no marker.
    # A lone component has no more blocks than it needs, whatever its sampling.
    across, down = (8, 8) if len(samplings) == 1 else (8 * (samplings[0] >> 4), 8 * (samplings[0] & 15))
    return Scan(start, end, -(-width // across) * -(-height // down) * coding.blocks, coding)


def _quantisers(segments: list[bytes]) -> set[int]:
    """Numbers of the tables that are defined; none if one of the segments is not as it should be."""
    numbers = set()
    for segment in segments:
        position = 0
        while position < len(segment):
            numbers.add(segment[position] & 15)
            position += 129 if segment[position] >> 4 else 65
        if position != len(segment):
            return set()
    return numbers if max(numbers, default=0) < 4 else set()


def _is_known(segments: dict[int, list[bytes]]) -> bool:
    """Whether what applications wrote is as libjpeg-turbo knows it."""
    jfif = (s for s in segments.get(APP0, []) if s.startswith(JFIF))
    icc = [s for s in segments.get(APP2, []) if s.startswith(ICC)]
    adobe = (s for s in segments.get(APP14, []) if s.startswith(ADOBE))
    return (
        all(s[5:6] == ONE for s in jfif)
        and all(s[11:12] == ONE for s in adobe)
        and len(icc) <= 1
        and all(s[12:14] == ONE + ONE and len(s) > 14 for s in icc)
    )
