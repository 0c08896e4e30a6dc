"""PBM, PGM and PPM, as text and as bytes; samples are scaled by the largest that the header allows."""

import re

import cv2
import numpy as np

from centernet_image.codecs.common import CheckSize, DamagedError, ImageError

_SPACE = rb"(?:[ \t\r\n\v\f]|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([1-6])" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})")
_MAXIMUM = re.compile(_SPACE + rb"(\d{1,9})")
_COMMENT = re.compile(rb"#[^\r\n]*")
_DIGITS = b"0123456789"
_MAX_DIGITS = 5

MAX_HEADER = 2**13
"""Bytes up to the height, and from there to the maximum, with their comments."""

MAX_COMMENTS = 4096
"""Among the numbers of text."""

READ_AT_ONCE = 2**17
"""Bytes of text: what stays in the processor's cache."""


def read(data: bytes, check: CheckSize) -> tuple[np.ndarray, int]:
    """Decodes P1 to P6."""
    header = _HEADER.match(data, 0, MAX_HEADER)
    if header is None:
        raise DamagedError("its header has no width and height")
    kind, width, height = map(int, header.groups())
    check(width, height)
    position, maximum = header.end(), 1
    if kind not in (1, 4):
        found = _MAXIMUM.match(data, position, position + MAX_HEADER)
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
        samples = _text(data, position, count, maximum, single=kind == 1)
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


def _text(data: bytes, position: int, count: int, maximum: int, *, single: bool) -> np.ndarray:
    """Numbers in decimal; where each is a `single` digit, spaces between them may be missing."""
    if data.count(b"#", position) > MAX_COMMENTS:
        raise ImageError(f"found a PPM picture of more than {MAX_COMMENTS} comments, limit is {MAX_COMMENTS}")
    if data.find(b"#", position) >= 0:
        data, position = _COMMENT.sub(b" ", data[position:]), 0
    _expect(count if single else 2 * count - 1, len(data) - position)
    samples = np.empty(count, np.uint8 if maximum < 256 else np.uint16)
    done, end = 0, _end_of_numbers(data, position)
    for start in range(position, end, READ_AT_ONCE):
        stop = min(start + READ_AT_ONCE, end)
        numbers = _digits(data, start, stop) if single else _numbers(data, start, stop)
        numbers = numbers[: count - done]
        if numbers.max(initial=0) > maximum:
            raise DamagedError(f"a sample is above the maximum of {maximum}")
        samples[done : done + len(numbers)] = numbers
        done += len(numbers)
        if done == count:
            return samples
    if end < len(data):
        raise DamagedError(f"found {data[end : end + 8]!r} among its numbers")
    _expect(count, done)
    return samples


def _end_of_numbers(data: bytes, position: int) -> int:
    """Where there is something else than digits and white space; it may follow a picture, not be in one."""
    for start in range(position, len(data), READ_AT_ONCE):
        others = data[start : start + READ_AT_ONCE].translate(None, _DIGITS + b" \t\r\n\v\f")
        if others:
            return len(data[: data.index(others[:1], start)].rstrip(_DIGITS))
    return len(data)


def _digits(data: bytes, start: int, stop: int) -> np.ndarray:
    """All digits of a part of the text."""
    digits = np.frombuffer(data, np.uint8, stop - start, start) - np.uint8(ord("0"))
    return digits[digits < 10]


def _numbers(data: bytes, start: int, stop: int) -> np.ndarray:
    """The numbers that end in a part of the text; the bytes around it say where they begin and end."""
    before = data[max(0, start - _MAX_DIGITS) : start].rjust(_MAX_DIGITS)
    text = b"".join([before, data[start:stop], data[stop : stop + 1] or b" "])
    digits = np.frombuffer(text, np.uint8) - np.uint8(ord("0"))
    is_digit = digits < 10
    ends = np.flatnonzero(is_digit[_MAX_DIGITS:-1] > is_digit[_MAX_DIGITS + 1 :]) + _MAX_DIGITS
    values = digits.take(ends).astype(np.uint32)
    inside = np.ones(len(ends), bool)
    for back in range(1, _MAX_DIGITS + 1):
        digit = digits.take(ends - back)
        inside &= digit < 10
        if not inside.any():
            return values
        values += (digit * inside).astype(np.uint32) * np.uint32(10**back)
    # Of so many digits that it cannot be told: more than any maximum.
    return values + inside * np.uint32(2**24)


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
