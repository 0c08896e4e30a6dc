"""PBM, PGM and PPM, as text and as bytes; samples are scaled by the largest that the header allows."""

import re

import cv2
import numpy as np

from centernet_image.codecs.common import CheckSize, DamagedError

_SPACE = rb"(?:[ \t\r\n\v\f]|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([1-6])" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})")
_MAXIMUM = re.compile(_SPACE + rb"(\d{1,9})")
_MAX_DIGITS = 5


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes P1 to P6."""
    header = _HEADER.match(data)
    if header is None:
        raise DamagedError("its header has no width and height")
    kind, width, height = map(int, header.groups())
    check(width, height)
    position, maximum = header.end(), 1
    if kind not in (1, 4):
        found = _MAXIMUM.match(data, position)
        if found is None or not 0 < int(found[1]) < 65536:
            raise DamagedError("its header has no maximum from 1 to 65535")
        position, maximum = found.end(), int(found[1])
    shape = (height, width, 3 if kind in (3, 6) else 1)
    count = height * width * shape[2]
    if kind == 4:
        samples = _bits(data, position + 1, height, width)
    elif kind > 3:
        samples = _binary(data, position + 1, count, maximum)
    else:
        samples = _text(data[position:], count, single=kind == 1)
    if kind in (1, 4):
        samples = samples ^ 1  # In a bitmap 1 is black.
    image = _scaled(samples, maximum).reshape(shape)
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR if shape[2] == 3 else cv2.COLOR_GRAY2BGR), 1


def _binary(data: bytes, position: int, count: int, maximum: int) -> np.ndarray:
    dtype = np.dtype(np.uint8 if maximum < 256 else ">u2")
    _expect(count * dtype.itemsize, len(data) - position)
    return np.frombuffer(data, dtype, count, position)


def _bits(data: bytes, position: int, height: int, width: int) -> np.ndarray:
    stride = (width + 7) // 8
    _expect(height * stride, len(data) - position)
    rows = np.frombuffer(data, np.uint8, height * stride, position).reshape(height, stride)
    return np.unpackbits(rows, axis=1, count=width)


def _text(text: bytes, count: int, *, single: bool) -> np.ndarray:
    """Numbers in decimal; where each is a `single` digit, spaces between them may be missing."""
    if b"#" in text:
        text = re.sub(rb"#[^\r\n]*", b" ", text)
    # In front of the first number there is always a space, so that looking back never leaves the array.
    digits = np.frombuffer(bytes(_MAX_DIGITS) + text + b" ", np.uint8) - np.uint8(ord("0"))
    is_digit = digits < 10
    if single:
        found = digits[is_digit]
        _expect(count, len(found))
        return found[:count]
    ends = np.flatnonzero(is_digit[:-1] & ~is_digit[1:])
    _expect(count, len(ends))
    ends = ends[:count]
    values = digits[ends].astype(np.uint32)
    inside = np.ones(count, bool)
    for back in range(1, _MAX_DIGITS + 1):
        inside &= is_digit[ends - back]
        if not inside.any():
            return values
        values += inside * digits[ends - back].astype(np.uint32) * np.uint32(10**back)
    raise DamagedError("a sample is above the maximum")


def _scaled(samples: np.ndarray, maximum: int) -> np.ndarray:
    """Samples of 0 to `maximum` as uint8 of 0 to 255; of 16 bits the upper 8 count."""
    if samples.max(initial=0) > maximum:
        raise DamagedError(f"a sample is above the maximum of {maximum}")
    if maximum == 255:
        return samples.astype(np.uint8, copy=False)
    levels = np.arange(maximum + 1)
    table = (levels >> 8 if maximum == 65535 else (levels * 255 + maximum // 2) // maximum).astype(np.uint8)
    return table[samples]


def _expect(needed: int, found: int) -> None:
    if found < needed:
        raise DamagedError(f"its pixels need {needed} bytes or numbers, {max(0, found)} are there")
