"""TIFF. The decoder sees a first directory of the tags that make pixels, and no others."""

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from centernet_image.codecs.common import (
    AT_ONCE,
    CheckSize,
    DamagedError,
    ImageError,
    has_row,
    inflated,
    opencv,
    to_bgr,
)

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _PALETTE, _TILE_WIDTH, _TILE_HEIGHT = 284, 317, 320, 322, 323
_TILE_OFFSETS, _TILE_BYTES, _INKS, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 324, 325, 332, 338, 339
_COEFFICIENTS, _SUBSAMPLING, _BLACK_WHITE = 529, 530, 532
_KEPT = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_OFFSETS, _SAMPLES),
    *(_ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR, _PREDICTOR, _PALETTE, _TILE_WIDTH, _TILE_HEIGHT),
    *(_TILE_OFFSETS, _TILE_BYTES, _INKS, _EXTRA_SAMPLES, _SAMPLE_FORMAT),
    *(_COEFFICIENTS, _SUBSAMPLING, _BLACK_WHITE),
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
_OFFSET_TYPES = {4: 4, 8: 16}
"""Field types of offsets, by their bytes."""
_USUAL_MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK")
_SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_UNSIGNED, _VOID = 1, 4
_RGB, _YCBCR = 2, 6
_SUBSAMPLINGS = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (4, 2))
_TO_BGR = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGR}
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""NumPy's types of the integers among the field types."""

MAX_TAGS = 65_535
MAX_SAMPLES = 5
MAX_PARTS = 2**18
"""Strips or tiles: those of 16x16 pixels in a picture of 64 megapixels."""

_EXPANSION = {_NONE: 1, _LZW: 3641, **dict.fromkeys(_DEFLATE, 1032), _PACKBITS: 64}
"""How many bytes one byte stands for at most: with LZW, 9 bits for 4096 bytes."""

_HOLE = 256
"""Equal bytes in a row that are not PackBits.

A literal has at most 128 bytes, and encoders put more than two equal ones into a run.
"""

LARGE_TILE = 1024
"""Pixels of a side that a tile may have in any picture."""


class _Directory:
    """The first directory's tags that are of interest, classic (32 bits) or BigTIFF (64 bits)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.order = "<" if data[:2] == b"II" else ">"
        (version,) = struct.unpack_from(f"{self.order}H", data, 2)
        big = version == 43
        self._offset = self.order + ("Q" if big else "I")
        self._count = self.order + ("Q" if big else "H")
        self._entry = self.order + ("HHQ" if big else "HHI")
        self._inline = 8 if big else 4
        self._entry_size = struct.calcsize(self._entry) + self._inline
        self._header_size = 16 if big else 8
        (start,) = struct.unpack_from(self._offset, data, self._header_size - self._inline)
        (count,) = struct.unpack_from(self._count, data, start)
        start += struct.calcsize(self._count)
        if count > MAX_TAGS or start + count * self._entry_size > len(data):
            raise DamagedError("its directory is not there")
        positions = range(start, start + count * self._entry_size, self._entry_size)
        tags = ((struct.unpack_from(f"{self.order}H", data, position)[0], position) for position in positions)
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
        dtype = np.dtype(self.order + _TYPES[kind])
        position += self._entry_size - self._inline
        if count * dtype.itemsize > self._inline:
            (position,) = struct.unpack_from(self._offset, self._data, position)
        if position + count * dtype.itemsize > len(self._data):
            raise DamagedError(f"the values of its tag {tag} are outside the file")
        return np.frombuffer(self._data, dtype, count, position)

    def one(self, tag: int, default: int | None = None) -> int:
        """A tag's first value."""
        return int(self.all(tag, default)[0])

    def write_alone(self, file: io.BytesIO, values: dict[int, np.ndarray]) -> None:
        """Gives a file that begins with these data a directory of the kept tags, some with new values."""
        file.write(bytes(-file.seek(0, io.SEEK_END) % 8))
        entries = []
        for tag in sorted(self._entries.keys() & _KEPT):
            entry = self._data[self._entries[tag] : self._entries[tag] + self._entry_size]
            if tag in values:
                packed = values[tag].astype(self.order + self._offset[1]).tobytes()
                entry = struct.pack(self._entry, tag, _OFFSET_TYPES[self._inline], len(values[tag]))
                if len(packed) > self._inline:
                    packed, position = struct.pack(self._offset, file.tell()), packed
                    file.write(position)
                entry += packed
            entries.append(entry)
        start = file.tell()
        file.write(b"".join([struct.pack(self._count, len(entries)), *entries, bytes(self._inline)]))
        file.seek(self._header_size - self._inline)
        file.write(struct.pack(self._offset, start))


class _Parts(NamedTuple):
    """Strips or tiles: where each is, its bytes in the file and of pixels, and the pixels' of a whole one.

    `shape` is that of its rows: columns, samples.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    needed: np.ndarray
    whole: int
    shape: tuple[int, int]


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes the first page: 1 to 16 bits a sample, plain, LZW, Deflate or PackBits."""
    directory = _Directory(data)
    width, height = directory.one(_WIDTH), directory.one(_HEIGHT)
    check(width, height)
    _check_samples(directory)
    parts = _parts(directory, width, height, len(data))
    compression = directory.one(_COMPRESSION, _NONE)
    if (parts.sizes * float(_EXPANSION[compression]) < parts.needed).any():
        raise DamagedError("a part has too few bytes for its pixels")
    if compression == _PACKBITS:
        spans = zip(parts.offsets.tolist(), (parts.offsets + parts.sizes).tolist(), strict=True)
        if any(has_row(data, _HOLE, *span) for span in spans):
            raise DamagedError("there is a hole in its pixels")
    if directory.one(_FILL_ORDER, 1) == 1 and not _begin_as(compression, data, parts.offsets):
        raise DamagedError("a part does not begin as its compression does")
    orientation = directory.one(_ORIENTATION, 1)
    orientation = orientation if 1 <= orientation <= 8 else 1
    if compression in (_LZW, _PACKBITS):
        return _by_library(directory, io.BytesIO(data), {}, compressed=True), orientation
    decoded = _decompressed(directory, data, parts) if compression in _DEFLATE else _uncompressed(data, parts)
    if _is_rgb(directory):
        return _assembled(decoded, parts.shape, height, width), orientation
    file, values = io.BytesIO(data), {}
    if compression in _DEFLATE:
        values = _store(directory, file, decoded, parts.needed)
    return _by_library(directory, file, values, compressed=False), orientation


def _check_samples(directory: _Directory) -> None:
    compression = directory.one(_COMPRESSION, _NONE)
    if compression not in _SUPPORTED:
        name = _COMPRESSIONS.get(compression, f"number {compression}")
        raise ImageError(
            f"found a TIFF picture of {name} compression, expected none, LZW, Deflate or PackBits"
        )
    for number in set(directory.all(_SAMPLE_FORMAT, _UNSIGNED)[:MAX_SAMPLES].tolist()):
        if number not in (_UNSIGNED, _VOID):
            name = _SAMPLE_FORMATS.get(number, f"unknown ({number})")
            raise ImageError(f"found a TIFF picture of {name} samples, expected unsigned integers")
    bits, samples = set(directory.all(_BITS, 1)[:MAX_SAMPLES].tolist()), directory.one(_SAMPLES, 1)
    if len(bits) != 1 or not bits <= {1, 2, 4, 8, 16} or not 1 <= samples <= MAX_SAMPLES:
        raise ImageError(
            f"found a TIFF picture of {samples} samples of {'/'.join(map(str, sorted(bits)[:4]))} bits, "
            f"expected 1 to {MAX_SAMPLES} samples of 1, 2, 4, 8 or 16 bits"
        )


def _parts(directory: _Directory, width: int, height: int, file_size: int) -> _Parts:
    across, down = _subsampling(directory)
    samples = directory.one(_SAMPLES, 1)
    planes = samples if directory.one(_PLANAR, 1) == 2 else 1
    if _TILE_WIDTH in directory:
        columns, rows = directory.one(_TILE_WIDTH), directory.one(_TILE_HEIGHT)
        # A tile is decoded as a whole, however little of it is the picture.
        fits = 0 < columns <= max(width, LARGE_TILE) + 15 and 0 < rows <= max(height, LARGE_TILE) + 15
        if not fits or columns % 16 or rows % 16:
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
    if parts * planes > MAX_PARTS:
        raise ImageError(f"found a TIFF picture of {parts * planes} strips or tiles, limit is {MAX_PARTS}")
    if not len(offsets) == len(sizes) == parts * planes:
        raise DamagedError(f"it has {len(offsets)} parts of {len(sizes)} sizes, expected {parts * planes}")
    ends = offsets.astype(np.float64) + sizes
    if (sizes < 1).any() or (offsets < 8).any() or (ends > file_size).any():
        raise DamagedError("its pixels are outside the file")
    # Else a few bytes, named again and again, would be much work.
    if sizes.sum(dtype=np.float64) > file_size:
        raise DamagedError("its parts overlap")
    samples = 1 if planes > 1 else samples
    # Where colours are subsampled, those of a block follow its brightnesses.
    stride = -(-columns // across) * (across * down + samples - 1) * directory.one(_BITS, 1)
    whole, last = (-(-count // down) * -(-stride // 8) for count in (rows, last_rows))
    needed = np.full((planes, parts), whole)
    needed[:, -1] = last
    return _Parts(offsets, sizes, needed.ravel(), whole, (columns, samples))


def _subsampling(directory: _Directory) -> tuple[int, int]:
    """How many pixels across and down share their colours."""
    if directory.one(_PHOTOMETRIC, 0) != _YCBCR:
        return 1, 1
    across, down = (directory.all(_SUBSAMPLING, 2)[:2].tolist() * 2)[:2]
    samples, bits, planar = directory.one(_SAMPLES, 1), directory.one(_BITS, 1), directory.one(_PLANAR, 1)
    if (samples, bits, planar) != (3, 8, 1) or (across, down) not in _SUBSAMPLINGS:
        raise ImageError(
            f"found a TIFF picture of {samples} YCbCr samples of {bits} bits, subsampled {across}x{down}, "
            "expected 3 of 8 bits, not in planes, subsampled 1x1, 2x1, 1x2, 2x2, 4x1 or 4x2"
        )
    return across, down


def _begin_as(compression: int, data: bytes, offsets: np.ndarray) -> bool:
    """Whether all parts begin right: one that lies in a hole does not, and nothing need be decompressed."""
    if compression not in (_LZW, *_DEFLATE):
        return True
    file, first = np.frombuffer(data, np.uint8), offsets.astype(np.int64)
    start = file[first].astype(int) << 8 | file[first + 1]
    if compression in _DEFLATE:
        return not (start % 31 | (start >> 8 & 15) ^ 8).any()
    # The code that clears the table, of 9 bits; in files of before 1993 they come in the other order.
    return bool((start >> 7 == 256).all() or (start & 0xFF01 == 1).all())


def _uncompressed(data: bytes, parts: _Parts) -> Iterator[np.ndarray]:
    """The bytes of each part's pixels where nothing is compressed."""
    for offset, needed in zip(parts.offsets.tolist(), parts.needed.tolist(), strict=True):
        yield np.frombuffer(data, np.uint8, needed, offset)


def _decompressed(directory: _Directory, data: bytes, parts: _Parts) -> Iterator[np.ndarray]:
    """The bytes of the parts' pixels, Deflate and the differences between neighbours undone.

    libtiff would not hold the parts against their checksums. Short strips come together; what is yielded is
    valid until the next is asked for.
    """
    if directory.one(_FILL_ORDER, 1) != 1:
        raise ImageError(
            "found a TIFF picture of reversed bits and Deflate compression, expected no compression"
        )
    predictor, bits = directory.one(_PREDICTOR, 1), directory.one(_BITS, 1)
    differences = predictor == 2 and bits in (8, 16) and directory.one(_PHOTOMETRIC, 0) != _YCBCR
    if predictor != 1 and not differences:
        raise ImageError(f"found a TIFF picture of unusual predictor {predictor}, expected none")
    together = 1 if _TILE_WIDTH in directory else max(1, AT_ONCE // parts.whole)
    view, pixels = memoryview(data), np.empty(together * parts.whole, np.uint8)
    entries = list(zip(*(array.tolist() for array in parts[:3]), strict=True))
    for first in range(0, len(entries), together):
        end = 0
        for offset, size, needed in entries[first : first + together]:
            start = end
            for piece in inflated(view[offset : offset + size]):
                if end + len(piece) > start + parts.whole:
                    raise DamagedError(f"a part of {needed} bytes decompresses to more")
                pixels[end : end + len(piece)] = np.frombuffer(piece, np.uint8)
                end += len(piece)
            if end - start < needed:
                raise DamagedError(f"a part of {needed} bytes decompresses to {end - start}")
            end = start + needed
        if differences:
            samples = pixels[:end].view(f"{directory.order}u{bits // 8}").reshape(-1, *parts.shape)
            np.cumsum(samples, axis=1, dtype=samples.dtype, out=samples)
        yield pixels[:end]


def _is_rgb(directory: _Directory) -> bool:
    """Whether its bytes are red, green and blue in turn, perhaps with a fourth that is dropped."""
    samples = directory.one(_SAMPLES, 1)
    extra = len(directory.all(_EXTRA_SAMPLES)) if _EXTRA_SAMPLES in directory else samples - 3
    return (
        directory.one(_PHOTOMETRIC, 0) == _RGB
        and directory.one(_PLANAR, 1) == directory.one(_FILL_ORDER, 1) == 1
        and samples in _TO_BGR
        and extra == samples - 3
        and directory.all(_BITS, 1).tolist() in ([8], [8] * samples)
    )


def _assembled(decoded: Iterator[np.ndarray], shape: tuple[int, int], height: int, width: int) -> np.ndarray:
    image = np.empty((height, width, 3), np.uint8)
    columns, samples = shape
    top = left = 0
    for pixels in decoded:
        source = pixels.reshape(-1, columns, samples)
        target = image[top : top + len(source), left : left + columns]
        cv2.cvtColor(source[: len(target), : target.shape[1]], _TO_BGR[samples], dst=target)
        left += columns
        if left >= width:
            left, top = 0, top + len(source)
    return image


def _store(
    directory: _Directory, file: io.BytesIO, decoded: Iterator[np.ndarray], needed: np.ndarray
) -> dict[int, np.ndarray]:
    """Writes the parts behind the file, not compressed, and returns the tags that say so."""
    start = file.seek(0, io.SEEK_END)
    for pixels in decoded:
        file.write(pixels.data)
    tags = (_TILE_OFFSETS, _TILE_BYTES) if _TILE_WIDTH in directory else (_STRIP_OFFSETS, _STRIP_BYTES)
    return {_COMPRESSION: np.array([_NONE]), tags[0]: start + np.cumsum(needed) - needed, tags[1]: needed}


def _by_library(
    directory: _Directory, file: io.BytesIO, values: dict[int, np.ndarray], *, compressed: bool
) -> np.ndarray:
    """Decodes the file, some of its tags with other values, by Pillow or what OpenCV knows better.

    Args:
        directory: Of the file.
        file: The whole file; the directory that is to be read is written behind it.
        values: Replace those of the file.
        compressed: Whether it must be Pillow: OpenCV would read on behind damage.
    """
    # Transparency is dropped: no decoder is to multiply by it.
    directory.write_alone(file, {_EXTRA_SAMPLES: np.zeros_like(directory.all(_EXTRA_SAMPLES, 0)), **values})
    # Pillow takes planes of 16 bits for others.
    usual = directory.one(_FILL_ORDER, 1) == 1 and (
        directory.one(_PLANAR, 1) == 1 or directory.one(_BITS, 1) == 8
    )
    file.seek(0)
    try:
        with Image.open(file, formats=["TIFF"]) as picture:
            usual = usual and picture.mode in _USUAL_MODES
            if usual or compressed:
                picture.load()
            if usual:
                return to_bgr(picture)
    except UnidentifiedImageError as error:
        if compressed:
            raise ImageError(
                "found a TIFF picture of unusual samples and LZW or PackBits compression, expected Deflate"
            ) from error
    try:
        return opencv(file.getbuffer())
    except DamagedError as error:
        if _TILE_WIDTH not in directory:
            raise
        # All bytes are there. OpenCV's libtiff reads tiles of a multiple of 1024 of them.
        raise ImageError("found a TIFF picture of unusual samples in tiles, expected strips") from error
