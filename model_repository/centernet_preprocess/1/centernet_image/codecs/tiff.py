"""TIFF. The decoder sees a first directory of the tags that make pixels, and no others."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from centernet_image.codecs.common import CheckSize, DamagedError, ImageError, opencv

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _PALETTE, _TILE_WIDTH, _TILE_HEIGHT = 284, 317, 320, 322, 323
_TILE_OFFSETS, _TILE_BYTES, _INKS, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 324, 325, 332, 338, 339
_KEPT = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_OFFSETS, _SAMPLES),
    *(_ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR, _PREDICTOR, _PALETTE, _TILE_WIDTH, _TILE_HEIGHT),
    *(_TILE_OFFSETS, _TILE_BYTES, _INKS, _EXTRA_SAMPLES, _SAMPLE_FORMAT),
}
_NONE, _LZW, _DEFLATE, _PACKBITS = 1, 5, (8, 32946), 32773
_SUPPORTED = (_NONE, _LZW, *_DEFLATE, _PACKBITS)
_COMPRESSIONS = {
    **dict.fromkeys((2, 3, 4), "fax"),
    **dict.fromkeys((6, 7), "JPEG"),
    **dict.fromkeys((33003, 33005, 34712), "JPEG 2000"),
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
_SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_UNSIGNED, _VOID = 1, 4
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""NumPy's types of the integers among the field types."""

MAX_TAGS = 65_535
MAX_SAMPLES = 5
INFLATED_AT_ONCE = 2**14
"""Bytes of Deflate, which become at most a thousand times as many."""

LARGE_TILE = 1024
"""Pixels of a side that a tile may have in any picture."""


class _Directory:
    """The first directory's tags that are of interest, classic (32 bits) or BigTIFF (64 bits)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        (version,) = struct.unpack_from(f"{self._order}H", data, 2)
        big = version == 43
        self._offset = self._order + ("Q" if big else "I")
        self._count = self._order + ("Q" if big else "H")
        self._entry = self._order + ("HHQ" if big else "HHI")
        self._inline = 8 if big else 4
        self._entry_size = struct.calcsize(self._entry) + self._inline
        self._header_size = 16 if big else 8
        (start,) = struct.unpack_from(self._offset, data, self._header_size - self._inline)
        (count,) = struct.unpack_from(self._count, data, start)
        start += struct.calcsize(self._count)
        if count > MAX_TAGS or start + count * self._entry_size > len(data):
            raise DamagedError("its directory is not there")
        positions = range(start, start + count * self._entry_size, self._entry_size)
        tags = (
            (struct.unpack_from(f"{self._order}H", data, position)[0], position) for position in positions
        )
        self._entries = {tag: position for tag, position in tags if tag in _KEPT or tag == _ORIENTATION}

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def all(self, tag: int, default: int | None = None) -> np.ndarray:
        """A tag's values; at least one."""
        if tag not in self._entries:
            if default is None:
                raise DamagedError(f"it has no tag {tag}")
            return np.array([default])
        position = self._entries[tag]
        _, kind, count = struct.unpack_from(self._entry, self._data, position)
        if kind not in _TYPES or not count:
            raise DamagedError(f"its tag {tag} holds no numbers")
        dtype = np.dtype(self._order + _TYPES[kind])
        position += self._entry_size - self._inline
        if count * dtype.itemsize > self._inline:
            (position,) = struct.unpack_from(self._offset, self._data, position)
        if position + count * dtype.itemsize > len(self._data):
            raise DamagedError(f"the values of its tag {tag} are outside the file")
        return np.frombuffer(self._data, dtype, count, position)

    def one(self, tag: int, default: int | None = None) -> int:
        """A tag's first value."""
        return int(self.all(tag, default)[0])

    def alone(self) -> bytes:
        """The file with another directory, of the kept tags, behind its end."""
        kept = [self._entries[tag] for tag in sorted(self._entries.keys() & _KEPT)]
        padding = bytes(-len(self._data) % 8)
        head = self._data[: self._header_size - self._inline]
        head += struct.pack(self._offset, len(self._data) + len(padding))
        directory = [struct.pack(self._count, len(kept))]
        directory += [self._data[entry : entry + self._entry_size] for entry in kept]
        return b"".join([head, self._data[self._header_size :], padding, *directory, bytes(self._inline)])


class _Parts(NamedTuple):
    """Strips or tiles: where each is, its bytes in the file and of pixels, and the pixels' of a whole one."""

    offsets: list[int]
    sizes: list[int]
    needed: list[int]
    whole: int


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes the first page: 1 to 16 bits a sample, plain, LZW, Deflate or PackBits."""
    directory = _Directory(data)
    width, height = directory.one(_WIDTH), directory.one(_HEIGHT)
    check(width, height)
    _check_samples(directory)
    parts = _parts(directory, width, height, len(data))
    compression = directory.one(_COMPRESSION, _NONE)
    alone = directory.alone()
    if compression == _NONE:
        if any(size < needed for size, needed in zip(parts.sizes, parts.needed, strict=True)):
            raise DamagedError("a part has fewer bytes than pixels")
    elif compression in _DEFLATE:
        _check_deflate(data, parts)
    else:
        _check_by_pillow(alone)
    orientation = directory.one(_ORIENTATION, 1)
    return opencv(alone), orientation if 1 <= orientation <= 8 else 1


def _check_samples(directory: _Directory) -> None:
    compression = directory.one(_COMPRESSION, _NONE)
    if compression not in _SUPPORTED:
        name = _COMPRESSIONS.get(compression, f"number {compression}")
        raise ImageError(
            f"found a TIFF picture of {name} compression, expected none, LZW, Deflate or PackBits"
        )
    for number in set(directory.all(_SAMPLE_FORMAT, _UNSIGNED).tolist()):
        if number not in (_UNSIGNED, _VOID):
            name = _SAMPLE_FORMATS.get(number, f"unknown ({number})")
            raise ImageError(f"found a TIFF picture of {name} samples, expected unsigned integers")
    bits, samples = set(directory.all(_BITS, 1).tolist()), directory.one(_SAMPLES, 1)
    if len(bits) != 1 or not bits <= {1, 2, 4, 8, 16} or not 1 <= samples <= MAX_SAMPLES:
        raise ImageError(
            f"found a TIFF picture of {samples} samples of {'/'.join(map(str, sorted(bits)[:4]))} bits, "
            f"expected 1 to {MAX_SAMPLES} samples of 1, 2, 4, 8 or 16 bits"
        )


def _parts(directory: _Directory, width: int, height: int, file_size: int) -> _Parts:
    samples = directory.one(_SAMPLES, 1)
    planes = samples if directory.one(_PLANAR, 1) == 2 else 1
    if _TILE_WIDTH in directory:
        columns, rows = directory.one(_TILE_WIDTH), directory.one(_TILE_HEIGHT)
        # A tile is decoded as a whole, however little of it is the picture.
        if not (0 < columns <= max(width, LARGE_TILE) + 15 and 0 < rows <= max(height, LARGE_TILE) + 15):
            raise DamagedError(f"it has tiles of {columns}x{rows} pixels")
        offsets, sizes = directory.all(_TILE_OFFSETS), directory.all(_TILE_BYTES)
        last_rows = rows
    else:
        columns, rows = width, min(directory.one(_ROWS_PER_STRIP, height), height)
        if rows < 1:
            raise DamagedError("it has strips of no rows")
        offsets, sizes = directory.all(_STRIP_OFFSETS), directory.all(_STRIP_BYTES)
        last_rows = height - (height - 1) // rows * rows
    parts = -(-width // columns) * -(-height // rows)
    if not len(offsets) == len(sizes) == parts * planes:
        raise DamagedError(f"it has {len(offsets)} parts of {len(sizes)} sizes, expected {parts * planes}")
    ends = offsets.astype(np.float64) + sizes
    if (sizes < 1).any() or (offsets < 8).any() or (ends > file_size).any():
        raise DamagedError("its pixels are outside the file")
    # Else a few bytes, named again and again, would be much work.
    if sizes.sum(dtype=np.float64) > file_size:
        raise DamagedError("its parts overlap")
    stride = -(-columns * directory.one(_BITS, 1) * (1 if planes > 1 else samples) // 8)
    needed = ([rows * stride] * (parts - 1) + [last_rows * stride]) * planes
    return _Parts(offsets.tolist(), sizes.tolist(), needed, rows * stride)


def _check_deflate(data: bytes, parts: _Parts) -> None:
    """OpenCV reads on behind damage; zlib compares the checksum at the end of each part."""
    view = memoryview(data)
    for offset, size, needed in zip(parts.offsets, parts.sizes, parts.needed, strict=True):
        stream, length = zlib.decompressobj(), 0
        try:
            # Bit by bit: a strip may be the whole picture.
            for start in range(offset, offset + size, INFLATED_AT_ONCE):
                length += len(stream.decompress(view[start : min(start + INFLATED_AT_ONCE, offset + size)]))
                if stream.eof or length > parts.whole:
                    break
        except zlib.error as error:
            raise DamagedError(str(error)) from error
        if not (stream.eof and needed <= length <= parts.whole):
            raise DamagedError(f"a part of {needed} bytes decompresses to {length}")


def _check_by_pillow(data: bytes) -> None:
    """As `_check_deflate`; Pillow asks the same libtiff and listens to its errors."""
    try:
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as picture:
            picture.load()
    except UnidentifiedImageError as error:
        raise ImageError(
            "found a TIFF picture of unusual samples and LZW or PackBits compression, expected Deflate"
        ) from error
