"""TIFF. The decoder sees a first directory of the tags that make pixels, and no others."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from centernet_image.codecs.common import CheckSize, DamagedError, ImageError, opencv, to_bgr

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
_OFFSET_TYPES = {4: 4, 8: 16}
"""Field types of offsets, by their bytes."""
_USUAL_MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK")
_SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_UNSIGNED, _VOID = 1, 4
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""NumPy's types of the integers among the field types."""

MAX_TAGS = 65_535
MAX_SAMPLES = 5
AT_ONCE = 2**18
"""Bytes of Deflate, and of what it stands for."""

MAX_PARTS = 2**18
"""Strips or tiles: those of 16x16 pixels in a picture of 64 megapixels."""

_EXPANSION = {_NONE: 1, _LZW: 3641, **dict.fromkeys(_DEFLATE, 1032), _PACKBITS: 64}
"""How many bytes one byte stands for at most: with LZW, 9 bits for 4096 bytes."""

_HOLES = (bytes(256), b"\xff" * 256)
"""Not PackBits: a literal has at most 128 bytes, and encoders put more than two equal ones into a run."""

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

    def write_alone(self, file: io.BytesIO, values: dict[int, np.ndarray]) -> None:
        """Gives a file that begins with these data a directory of the kept tags, some with new values."""
        file.write(bytes(-file.seek(0, io.SEEK_END) % 8))
        entries = []
        for tag in sorted(self._entries.keys() & _KEPT):
            entry = self._data[self._entries[tag] : self._entries[tag] + self._entry_size]
            if tag in values:
                packed = values[tag].astype(self._order + self._offset[1]).tobytes()
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
    """Strips or tiles: where each is, its bytes in the file and of pixels, and the pixels' of a whole one."""

    offsets: np.ndarray
    sizes: np.ndarray
    needed: np.ndarray
    whole: int


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
        if any(data.find(hole, start, end) >= 0 for start, end in spans for hole in _HOLES):
            raise DamagedError("there is a hole in its pixels")
    # Transparency is dropped: no decoder is to multiply by it.
    values = {_EXTRA_SAMPLES: np.zeros_like(directory.all(_EXTRA_SAMPLES, 0))}
    file = io.BytesIO(data)
    if compression in _DEFLATE:
        tags = (_TILE_OFFSETS, _TILE_BYTES) if _TILE_WIDTH in directory else (_STRIP_OFFSETS, _STRIP_BYTES)
        values |= zip(tags, _store(file, data, parts), strict=True)
    directory.write_alone(file, values)
    usual = directory.one(_PLANAR, 1) == directory.one(_FILL_ORDER, 1) == 1
    image = _by_pillow(file, usual=usual, strict=compression in (_LZW, _PACKBITS))
    orientation = directory.one(_ORIENTATION, 1)
    return opencv(file.getbuffer()) if image is None else image, orientation if 1 <= orientation <= 8 else 1


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
    stride = -(-columns * directory.one(_BITS, 1) * (1 if planes > 1 else samples) // 8)
    needed = np.full((planes, parts), rows * stride)
    needed[:, -1] = last_rows * stride
    return _Parts(offsets, sizes, needed.ravel(), rows * stride)


def _store(file: io.BytesIO, data: bytes, parts: _Parts) -> tuple[np.ndarray, np.ndarray]:
    """Undoes Deflate: writes the parts behind the file, stored, and returns their places and sizes.

    libtiff would not hold them against their checksums.
    """
    view, end = memoryview(data), file.seek(0, io.SEEK_END)
    places = [end]
    for offset, size, needed in zip(*(array.tolist() for array in parts[:3]), strict=True):
        store, length = zlib.compressobj(0, wbits=9, memLevel=1), 0
        for pixels in _inflated(view[offset : offset + size]):
            length += len(pixels)
            if length > parts.whole:
                break
            end += file.write(store.compress(pixels))
        if not needed <= length <= parts.whole:
            raise DamagedError(f"a part of {needed} bytes decompresses to {length}")
        end += file.write(store.flush())
        places.append(end)
    return np.array(places[:-1]), np.diff(places)


def _inflated(part: memoryview) -> Iterator[bytes]:
    """What Deflate stands for, bit by bit: a strip may be the whole picture."""
    stream = zlib.decompressobj()
    try:
        for start in range(0, len(part), AT_ONCE):
            pending: bytes | memoryview = part[start : start + AT_ONCE]
            while pending and not stream.eof:
                yield stream.decompress(pending, AT_ONCE)
                pending = stream.unconsumed_tail
        yield stream.flush()
    except zlib.error as error:
        raise DamagedError(str(error)) from error
    if not stream.eof:
        raise DamagedError("a part has no end")


def _by_pillow(file: io.BytesIO, *, usual: bool, strict: bool) -> np.ndarray | None:
    """The picture, or None if it is of a kind that OpenCV knows better.

    Args:
        file: The whole file.
        usual: Whether its samples are in the usual order.
        strict: Whether it must be decoded in any case: OpenCV would read on behind damage.
    """
    file.seek(0)
    try:
        with Image.open(file, formats=["TIFF"]) as picture:
            usual = usual and picture.mode in _USUAL_MODES
            if usual or strict:
                picture.load()
            return to_bgr(picture) if usual else None
    except UnidentifiedImageError as error:
        if strict:
            raise ImageError(
                "found a TIFF picture of unusual samples and LZW or PackBits compression, expected Deflate"
            ) from error
        return None
