"""What the scan kernel is told of a JPEG's Huffman tables, and of the order in which blocks use them."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

# As struct Table in scan.cu.
TABLE = np.dtype([("limits", np.uint16, 17), ("offsets", np.uint16, 17), ("steps", np.uint16, 256)])
CODE_BITS = 16
END_OF_BLOCK, SIXTEEN_ZEROS = 64, 15
MAX_BYTES = 2048
"""Of the segments that define tables: twice what a baseline JPEG can use."""


class Coding(NamedTuple):
    """How a scan's blocks are coded.

    Attributes:
        tables: `TABLE` [4]: DC and AC, of the first and the second pair.
        blocks: In each MCU.
        period: Blocks after which the pairs are the same again.
        pairs: A bit for each block of a period: its pair.
    """

    tables: np.ndarray
    blocks: int
    period: int
    pairs: int


@lru_cache(maxsize=256)
def coding(segments: tuple[bytes, ...], selectors: bytes, samplings: bytes) -> Coding | None:
    """Makes the tables of a scan.

    Args:
        segments: What its DHT segments hold, `MAX_BYTES` at most.
        selectors: Of each component, DC's in the upper half.
        samplings: Of each component, horizontal in the upper half. Of a lone one it does not matter.

    Returns:
        None if libjpeg would refuse it, or if it has more than two pairs of tables.
    """
    defined: dict[int, bytes] = {}
    for segment in segments:
        if not _define(segment, defined):
            return None
    names = [(selector >> 4, 0x10 | selector & 15) for selector in selectors]
    used = [(defined.get(dc), defined.get(ac)) for dc, ac in names]
    different = list(dict.fromkeys(used))
    if len(different) > 2:
        return None
    tables = [_table(spec, dc=i == 0) for pair in different for i, spec in enumerate(pair)]
    if any(table is None for table in tables):
        return None
    counts = [1] if len(samplings) == 1 else [(s >> 4) * (s & 15) for s in samplings]
    pattern = [different.index(pair) for pair, count in zip(used, counts, strict=True) for _ in range(count)]
    # Of blocks with the same tables, a decoder could never tell which of them it is at.
    period = 1 if len(different) == 1 else len(pattern)
    pairs = sum(pair << block for block, pair in enumerate(pattern[:period]))
    return Coding(np.array((tables * 2)[:4], TABLE), len(pattern), period, pairs)


def _define(segment: bytes, defined: dict[int, bytes]) -> bool:
    """Adds a DHT segment's tables, by class and number: each the counts of codes, and the symbols."""
    position = 0
    while position < len(segment):
        name, counts = segment[position], segment[position + 1 : position + 1 + CODE_BITS]
        end = position + 1 + CODE_BITS + sum(counts)
        if name & ~0x13 or len(counts) < CODE_BITS or sum(counts) > 256 or end > len(segment):
            return False
        defined[name] = segment[position + 1 : end]
        position = end
    return True


@lru_cache(maxsize=256)
def _table(spec: bytes | None, *, dc: bool) -> tuple[list[int], list[int], list[int]] | None:
    """One element of an array of `TABLE`."""
    if spec is None:
        return None
    limits, offsets, steps = [0] * 17, [0] * 17, [0] * 256
    code = index = 0
    for length in range(1, CODE_BITS + 1):
        code *= 2
        offsets[length] = (index - code) % 2**16
        for symbol in spec[CODE_BITS + index : CODE_BITS + index + spec[length - 1]]:
            run, size = divmod(symbol, 16)
            if dc and run:
                return None
            steps[index] = length + size + 256 * (1 if dc else _advance(run, size))
            code, index = code + 1, index + 1
        if code >= 2**length:  # No code is all ones.
            return None
        limits[length] = code << (CODE_BITS - length)
    return limits, offsets, steps


def _advance(run: int, size: int) -> int:
    return run + 1 if size or run == SIXTEEN_ZEROS else END_OF_BLOCK
