"""TIFF. The decoder sees a first directory of the tags that make pixels, and no others."""

import struct
from dataclasses import dataclass

import numpy as np

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
_NONE, _LZW, _DEFLATE, _PACKBITS, _OLD_DEFLATE = 1, 5, 8, 32773, 32946
_SUPPORTED = (_NONE, _LZW, _DEFLATE, _PACKBITS, _OLD_DEFLATE)
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
_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""NumPy's types of the integers among the field types."""

MAX_TILE_SIDE = 1024


@dataclass(frozen=True)
class _Layout:
    """How a file addresses: classic with 32 bits, BigTIFF with 64."""

    order: str
    header: int
    count: str
    entry: str
    offset: str

    @property
    def entry_size(self) -> int:
        return struct.calcsize(self.order + self.entry) + self.inline

    @property
    def inline(self) -> int:
        """Bytes of an entry that hold its value, if that fits, else where the value is."""
        return struct.calcsize(self.order + self.offset)


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes the first page: 1 to 16 bits a sample, plain, LZW, Deflate or PackBits."""
    layout = _layout(data)
    (directory,) = struct.unpack_from(layout.order + layout.offset, data, layout.header - layout.inline)
    (count,) = struct.unpack_from(layout.order + layout.count, data, directory)
    first = directory + struct.calcsize(layout.count)
    if count > 65535 or first + count * layout.entry_size > len(data):
        raise DamagedError("its directory is not there")
    entries = {}
    for index in range(count):
        position = first + index * layout.entry_size
        (tag,) = struct.unpack_from(f"{layout.order}H", data, position)
        if tag in _KEPT or tag == _ORIENTATION:
            entries[tag] = position

    def values(tag: int, default: int | None = None) -> np.ndarray:
        if tag not in entries:
            if default is None:
                raise DamagedError(f"it has no tag {tag}")
            return np.array([default])
        return _values(data, layout, entries[tag])

    def value(tag: int, default: int | None = None) -> int:
        found = values(tag, default)
        if not len(found):
            raise DamagedError(f"its tag {tag} is empty")
        return int(found[0])

    width, height, samples = value(_WIDTH), value(_HEIGHT), value(_SAMPLES, 1)
    check(width, height)
    _check_samples(values, value, samples)
    planes = samples if value(_PLANAR, 1) == 2 else 1
    if _TILE_WIDTH in entries:
        tile_width, tile_height = value(_TILE_WIDTH), value(_TILE_HEIGHT)
        longest = max(width, height, MAX_TILE_SIDE)
        if not (0 < tile_width <= longest + 15 and 0 < tile_height <= longest + 15):
            raise DamagedError(f"tiles of {tile_width}x{tile_height} pixels")
        parts = -(-width // tile_width) * -(-height // tile_height) * planes
        offsets, sizes = values(_TILE_OFFSETS), values(_TILE_BYTES)
        rows, columns = tile_height, tile_width
    else:
        rows = min(value(_ROWS_PER_STRIP, height), height)
        if rows < 1:
            raise DamagedError("strips of no rows")
        parts = -(-height // rows) * planes
        offsets, sizes = values(_STRIP_OFFSETS), values(_STRIP_BYTES)
        columns = width
    if not len(offsets) == len(sizes) == parts:
        raise DamagedError(f"{len(offsets)} parts of {len(sizes)} sizes, expected {parts}")
    offsets, sizes = offsets.astype(np.float64), sizes.astype(np.float64)
    if (sizes < 1).any() or (offsets < 8).any() or (offsets + sizes > len(data)).any():
        raise DamagedError("pixels are outside the file")
    # Else few bytes, named again and again, would be much work.
    if sizes.sum() > len(data):
        raise DamagedError("its parts overlap")
    if value(_COMPRESSION, _NONE) == _NONE:
        bits = value(_BITS, 1) * (1 if planes > 1 else samples)
        stride = -(-columns * bits // 8)
        last = rows if _TILE_WIDTH in entries else height - (height - 1) // rows * rows
        needed = np.full(parts, rows * stride)
        needed[parts // planes - 1 :: parts // planes] = last * stride
        if (sizes < needed).any():
            raise DamagedError("a part has fewer bytes than pixels")
    orientation = value(_ORIENTATION, 1)
    return opencv(_rewritten(data, layout, entries)), orientation if 1 <= orientation <= 8 else 1


def _check_samples(values, value, samples: int) -> None:  # type: ignore[no-untyped-def]
    compression = value(_COMPRESSION, _NONE)
    if compression not in _SUPPORTED:
        name = _COMPRESSIONS.get(compression, f"number {compression}")
        raise ImageError(
            f"found a TIFF picture of {name} compression, expected none, LZW, Deflate or PackBits"
        )
    for number in values(_SAMPLE_FORMAT, _UNSIGNED).tolist():
        if number not in (_UNSIGNED, _VOID):
            name = _SAMPLE_FORMATS.get(number, f"unknown ({number})")
            raise ImageError(f"found a TIFF picture of {name} samples, expected unsigned integers")
    bits = set(values(_BITS, 1).tolist())
    if len(bits) != 1 or not bits <= {1, 2, 4, 8, 16} or not 1 <= samples <= 5:
        found = ", ".join(map(str, sorted(bits)[:4]))
        raise ImageError(
            f"found a TIFF picture of {samples} samples of {found} bits a pixel, "
            "expected 1 to 5 samples of 1, 2, 4, 8 or 16 bits"
        )


def _layout(data: bytes) -> _Layout:
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    return _Layout(order, 16, "Q", "HHQ", "Q") if version == 43 else _Layout(order, 8, "H", "HHI", "I")


def _values(data: bytes, layout: _Layout, entry: int) -> np.ndarray:
    _, kind, count = struct.unpack_from(layout.order + layout.entry, data, entry)
    if kind not in _FORMATS:
        raise DamagedError(f"a tag of type {kind}")
    dtype = np.dtype(layout.order + _FORMATS[kind])
    position = entry + layout.entry_size - layout.inline
    if count * dtype.itemsize > layout.inline:
        (position,) = struct.unpack_from(layout.order + layout.offset, data, position)
    if position + count * dtype.itemsize > len(data):
        raise DamagedError("a tag's values are outside the file")
    return np.frombuffer(data, dtype, count, position)


def _rewritten(data: bytes, layout: _Layout, entries: dict[int, int]) -> bytes:
    """The file with another directory, of the kept tags, behind its end."""
    kept = [entries[tag] for tag in sorted(entries.keys() & _KEPT)]
    padding = bytes(-len(data) % 8)
    head = data[: layout.header - layout.inline]
    where = struct.pack(layout.order + layout.offset, len(data) + len(padding))
    directory = [struct.pack(layout.order + layout.count, len(kept))]
    directory += [data[entry : entry + layout.entry_size] for entry in kept]
    return b"".join([head, where, data[layout.header :], padding, *directory, bytes(layout.inline)])
