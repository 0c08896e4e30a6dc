"""What the scan kernel is told of a batch: one piece of memory, scans' descriptions before their bytes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from centernet_preprocessing.gpu.huffman import TABLE
from centernet_preprocessing.gpu.layout import Scan

# As struct Scan in scan.cu.
SCAN = np.dtype(
    [
        ("tables", TABLE, 4),
        ("start", np.int64),
        ("parts", np.int64),
        ("bytes", np.int32),
        ("blocks", np.int32),
        ("period", np.uint32),
        ("pairs", np.uint32),
    ]
)
PART_BYTES, PART_ITEMSIZE = 128, 16
"""Of a scan, and of struct Part in scan.cu."""

ALIGNMENT = 16
ZEROS = 16
"""Behind each scan, at least: the kernel reads on so far."""


class Place(NamedTuple):
    """Where a scan is in a batch's memory, and its first part among the batch's."""

    start: int
    part: int


def places(scans: Sequence[Scan]) -> tuple[list[Place], Place]:
    """Lays out a batch; the last place is its end."""
    start, part = _aligned(len(scans) * SCAN.itemsize), 0
    found = []
    for scan in scans:
        found.append(Place(start, part))
        start, part = _aligned(start + scan.length + ZEROS), part - -scan.length // PART_BYTES
    return found, Place(start, part)


def pack(files: Sequence[tuple[bytes, Scan]], found: Sequence[Place], memory: np.ndarray) -> None:
    """Fills a batch's memory, uint8, aligned to 16 bytes."""
    head = memory[: len(files) * SCAN.itemsize].view(SCAN)
    for row, (data, scan), place in zip(head, files, found, strict=True):
        length, coding = scan.length, scan.coding
        row["tables"] = coding.tables
        row["start"], row["parts"], row["bytes"] = place.start, place.part, length
        row["blocks"], row["period"], row["pairs"] = scan.blocks, coding.period, coding.pairs
        end = place.start + length
        memory[place.start : end] = np.frombuffer(data, np.uint8, length, scan.start)
        memory[end : _aligned(end + ZEROS)] = 0


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
