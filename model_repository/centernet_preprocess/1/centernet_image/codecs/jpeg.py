"""JPEG, by libjpeg-turbo in its strict mode: what it would only warn of is an error."""

import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import simplejpeg

from centernet_image.codecs.common import CheckSize, DamagedError, ImageError, exif_orientation

MAX_SCANS = 10
"""Of one component. Each is a pass over the picture, however few its bytes; encoders write 6."""

MAX_SEGMENTS = 4096

# What begins a segment or ends the file: not a stuffed byte (0), TEM (1) or a restart (D0 to D7).
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_SOF, _PROGRESSIVE, _EOI, _SOS, _APP1 = (0xC0, 0xC1, 0xC2), 0xC2, 0xD9, 0xDA, 0xE1
_OTHER_FRAMES = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "a lossless"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "a hierarchical"),
    **dict.fromkeys((0xC9, 0xCA), "an arithmetic-coded"),
}
_WHOLE_SPECTRUM = b"\0\x3f\0"


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes baseline and progressive JPEG of 8 bits."""
    orientation = None
    components = frame = blocks = height = width = 0
    scans: Counter[int] = Counter()
    # Of each component's coefficients, how many of their lowest bits are still to come, or that all are.
    to_come: dict[int, bytearray] = defaultdict(lambda: bytearray(b"\xff" * 64))
    empty_spectra: list[int] = []
    for marker, start, end in _segments(data):
        if marker in _OTHER_FRAMES:
            raise ImageError(f"found {_OTHER_FRAMES[marker]} JPEG picture, expected baseline or progressive")
        if marker == _APP1 and orientation is None and data[start : start + 6] == b"Exif\0\0":
            orientation = exif_orientation(data[start:end])
        elif marker in _SOF:
            frame = marker
            precision, height, width, components = struct.unpack_from(">BHHB", data, start)
            if precision != 8:
                raise ImageError(f"found a JPEG picture of {precision} bits a sample, expected 8")
            check(width, height)
            blocks = -(-width // 8) * -(-height // 8)
        elif marker == _SOS:
            # libjpeg fills the picture that it cannot decode, however few bytes claim it.
            if not scans and 8 * (len(data) - end) < blocks:
                raise DamagedError(f"{len(data) - end} bytes are too few for {blocks} blocks")
            count = data[start]
            spectrum = data[end - 3 : end]
            if frame != _PROGRESSIVE:
                # Some encoders leave these empty where they have only one meaning.
                if spectrum != _WHOLE_SPECTRUM:
                    empty_spectra.append(end)
                    spectrum = _WHOLE_SPECTRUM
                if count == components:
                    # The only scan there may be; without an end there is no need to decode it.
                    if data.rfind(b"\xff\xd9", end) < 0:
                        raise DamagedError("it has no end")
                    break
            first, last, bits = spectrum
            ids = data[start + 1 : start + 1 + 2 * count : 2]
            for component in ids:
                to_come[component][first : last + 1] = bytes([bits & 15]) * (last + 1 - first)
            scans.update(ids)
            if scans and max(scans.values()) > MAX_SCANS:
                raise ImageError(f"found a JPEG picture of more than {MAX_SCANS} scans, limit is {MAX_SCANS}")
    else:
        # libjpeg would show what there is, be it the first of ten scans.
        if len(to_come) < components or any(map(any, to_come.values())):
            raise DamagedError("scans are missing")
    return _pixels(_with_spectra(data, empty_spectra), (height, width)), orientation or 1


def _with_spectra(data: bytes, ends: list[int]) -> bytes:
    """The file with a whole spectrum in the headers of the scans that end there."""
    if not ends:
        return data
    filled = bytearray(data)
    for end in ends:
        filled[end - 3 : end] = _WHOLE_SPECTRUM
    return bytes(filled)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment's content up to the end marker; what scans hold is skipped."""
    if data.rfind(b"\xff\xd9") < 0:
        raise DamagedError("it has no end")
    position = 2
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None:
            raise DamagedError("it has no end")
        position = found.end()
        marker = data[position - 1]
        if marker == _EOI:
            return
        (length,) = struct.unpack_from(">H", data, position)
        if length < 2 or position + length > len(data):
            raise DamagedError(f"a segment claims {length} bytes, {len(data) - position} are there")
        yield marker, position + 2, position + length
        position += length
    raise ImageError(f"found a JPEG picture of more than {MAX_SEGMENTS} segments, limit is {MAX_SEGMENTS}")


def _pixels(data: bytes, size: tuple[int, int]) -> np.ndarray:
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != size:
            raise DamagedError("it has headers that contradict each other")
        return simplejpeg.decode_jpeg(data, "BGR", strict=True)
    except ValueError as error:
        reason = str(error)
    if "extraneous bytes before marker 0xd9" in reason:
        # Some cameras pad with zeros before the end marker.
        body = data[: data.rfind(b"\xff\xd9")]
        if body.endswith(b"\0"):
            return _pixels(body.rstrip(b"\0") + b"\xff\xd9", size)
    if "subsampling" in reason:
        raise ImageError("found a JPEG picture of unusual chroma subsampling, expected 4:4:4, 4:2:2 or 4:2:0")
    raise DamagedError(reason)
