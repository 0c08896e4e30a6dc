"""Which JPEGs of a batch are whole: a kernel says so, or else libjpeg-turbo."""

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from pathlib import Path

import cupy
import cupyx
import numpy as np

from centernet_preprocessing.gpu.jpeg import is_whole
from centernet_preprocessing.gpu.layout import Scan
from centernet_preprocessing.gpu.packing import PART_BYTES, PART_ITEMSIZE, pack, places

MAX_SCAN_BYTES, MAX_BYTES = 2**23, 2**26
"""Of a scan, and of a batch's: those beyond are libjpeg-turbo's."""

BEGIN_THREADS, CHECK_THREADS = 256, 1024
"""Of a block: one for each part, and for all of a scan."""


class ScanCheck:
    """Checks one batch after the other, on a stream of its own."""

    def __init__(self, pool: Executor) -> None:
        self.pool = pool
        self.stream = cupy.cuda.Stream(non_blocking=True)
        source = Path(__file__).with_name("scan.cu").read_text(encoding="utf-8")
        module = cupy.RawModule(code=source)
        self.kernels = module.get_function("begin"), module.get_function("check")
        # Kept for the next batch, or replaced by more.
        self.staging = cupyx.empty_pinned(1, np.uint8)
        self.memory = self.parts = self.flags = cupy.empty(1, cupy.uint8)
        self.files: dict[int, bytes] = {}
        self.found: dict[int, Future[bool]] = {}

    def start(self, pictures: Mapping[int, tuple[bytes, Scan | None]]) -> None:
        """Begins a batch: plain JPEGs, and what the kernel needs to know of each, by index."""
        batch: dict[int, tuple[bytes, Scan]] = {}
        total = 0
        self.found = {}
        for index, (data, scan) in pictures.items():
            if scan and len(data) <= MAX_SCAN_BYTES and total + len(data) <= MAX_BYTES:
                batch[index] = data, scan
                total += len(data)
            else:
                self.found[index] = self.pool.submit(is_whole, data)
        self.files = {index: data for index, (data, _) in batch.items()}
        if batch:
            self._launch(list(batch.values()))

    def is_whole(self, index: int) -> bool:
        """Waits for the answer to one of the batch's pictures."""
        if self.files:
            flags = self.flags[: len(self.files)].get(stream=self.stream)
            self.stream.synchronize()
            vouched = dict(zip(self.files, flags, strict=True))
            suspects = {i: data for i, data in self.files.items() if not vouched[i]}
            self.found |= {i: self.pool.submit(is_whole, data) for i, data in suspects.items()}
            self.files = {}
        return index not in self.found or self.found[index].result()

    def close(self) -> None:
        """Gives the memory back."""
        del self.staging, self.memory, self.parts, self.flags

    def _launch(self, files: list[tuple[bytes, Scan]]) -> None:
        found, end = places([scan for _, scan in files])
        # The batch before, if nobody asked for its answers.
        self.stream.synchronize()
        if end.start > self.staging.size:
            self.staging = cupyx.empty_pinned(2 * end.start, np.uint8)
            self.memory = cupy.empty(2 * end.start, cupy.uint8)
        if end.part * PART_ITEMSIZE > self.parts.size:
            self.parts = cupy.empty(2 * end.part * PART_ITEMSIZE, cupy.uint8)
        if len(files) > self.flags.size:
            self.flags = cupy.empty(len(files), cupy.uint8)
        pack(files, found, self.staging)
        self.memory[: end.start].set(self.staging[: end.start], stream=self.stream)
        self.launch(len(files), max(-(-scan.length // PART_BYTES) for _, scan in files))

    def launch(self, scans: int, parts: int) -> None:
        """Starts the kernels on what is in the memory.

        Args:
            scans: Their number.
            parts: Of the longest.
        """
        begin, check = self.kernels
        arguments = (self.memory, self.memory, self.parts)
        with self.stream:
            begin((-(-parts // BEGIN_THREADS), scans), (BEGIN_THREADS,), arguments)
            check((scans,), (CHECK_THREADS,), (*arguments, self.flags))
