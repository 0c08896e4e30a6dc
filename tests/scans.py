"""JPEGs whole and damaged, for the check of their scans, and its kernel on the CPU."""

import ctypes
import functools
import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from centernet_preprocessing.gpu.jpeg import parse
from centernet_preprocessing.gpu.packing import PART_BYTES, PART_ITEMSIZE, pack, places
from pictures import picture
from PIL import Image

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "model_repository/centernet_preprocess/1/centernet_preprocessing/gpu/scan.cu"
FIBERS = ROOT / "plugins/dcnv2/tests"
# Threads are fibers, each of which runs until it meets the others. Nothing is in the memory that a block
# has not written.
HOST = """
#include "fibers.h"
using namespace dcnv2;
#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(threads)
struct Index { unsigned x, y; };
static Index blockIdx, blockDim;
#define threadIdx (Index{static_cast<unsigned>(emulation::self().thread), 0})
static int min(int a, int b) { return a < b ? a : b; }
static void atomicAdd(int* sum, int value) { *sum += value; }
static void atomicMin(int* least, int value) { *least = min(*least, value); }
static unsigned __byte_perm(unsigned a, unsigned, unsigned) { return __builtin_bswap32(a); }
static void __syncthreads() {
  emulation::meet(emulation::self().block->meeting, static_cast<size_t>(emulation::machine.threads));
}
static int __syncthreads_or(int vote) {
  static int votes;
  votes |= vote;
  __syncthreads();
  const int result = votes;
  __syncthreads();
  votes = 0;
  __syncthreads();
  return result;
}
#include "scan.cu"
static_assert(sizeof(Part) == PART_ITEMSIZE && kPartBytes == PART_BYTES);
template <class Kernel>
void launch(int columns, int rows, int threads, Kernel kernel) {
  blockDim.x = static_cast<unsigned>(threads);
  for (blockIdx.y = 0; blockIdx.y < static_cast<unsigned>(rows); ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < static_cast<unsigned>(columns); ++blockIdx.x) {
      std::memset(static_cast<void*>(&shared), 0xee, sizeof(shared));
      emulation::launch(1, 1, threads, 0, kernel);
    }
  }
}
extern "C" void run_begin(int columns, int rows, int threads, const unsigned char* memory, Part* parts) {
  launch(columns, rows, threads, [=] { begin(reinterpret_cast<const Scan*>(memory), memory, parts); });
}
extern "C" void run_check(int scans, int threads, const unsigned char* memory, Part* parts,
                          unsigned char* flags) {
  launch(scans, 1, threads, [=] { check(reinterpret_cast<const Scan*>(memory), memory, parts, flags); });
}
"""


class HostKernel:
    """The kernel, compiled for the CPU."""

    def __init__(self, folder: Path, max_passes: int | None = None) -> None:
        (folder / "host.cpp").write_text(HOST)
        source = SOURCE.read_text()
        if max_passes:
            source, found = re.subn(r"(kMaxPasses =) \d+", rf"\1 {max_passes}", source)
            assert found == 1
        (folder / SOURCE.name).write_text(source)
        command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", f"-I{FIBERS}"]
        command += [f"-DPART_ITEMSIZE={PART_ITEMSIZE}", f"-DPART_BYTES={PART_BYTES}"]
        subprocess.run([*command, "host.cpp", "-o", "host.so"], cwd=folder, check=True)
        self._library = ctypes.CDLL(str(folder / "host.so"))

    def begin(self, grid: tuple[int, int], threads: int, *arrays: np.ndarray) -> None:
        """One launch of `begin`: memory, parts."""
        self._library.run_begin(*grid, threads, *map(_pointer, arrays))

    def check(self, scans: int, threads: int, *arrays: np.ndarray) -> None:
        """One launch of `check`: memory, parts, flags."""
        self._library.run_check(scans, threads, *map(_pointer, arrays))

    def vouches(self, pictures: list[bytes], threads: int = 64) -> list[bool]:
        """For each picture, whether the kernel finds it whole; not if it is not asked."""
        scans = [parsed.scan if (parsed := parse(data)) else None for data in pictures]
        asked = [i for i, scan in enumerate(scans) if scan]
        found, end = places([scans[i] for i in asked])
        memory = np.full(end.start, 0xEE, np.uint8)
        pack([(pictures[i], scans[i]) for i in asked], found, memory)
        parts = np.full(end.part * PART_ITEMSIZE, 0xEE, np.uint8)
        flags = np.full(len(asked), 0xEE, np.uint8)
        longest = max((scans[i].length for i in asked), default=1)
        columns = -(-longest // (PART_BYTES * threads))
        self.begin((columns, len(asked)), threads, memory, parts)
        self.check(len(asked), threads, memory, parts, flags)
        assert set(flags) <= {0, 1}
        answers = dict(zip(asked, flags == 1, strict=True))
        return [bool(answers.get(i, False)) for i in range(len(pictures))]


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@functools.cache
def host_kernel(max_passes: int | None = None) -> HostKernel:
    """Compiled once; without a compiler, the test is skipped."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    with tempfile.TemporaryDirectory() as folder:
        return HostKernel(Path(folder), max_passes)


def jpeg(image: np.ndarray, **options: object) -> bytes:
    """Encodes BGR uint8 [height, width, 3], or grey [height, width]."""
    stream = io.BytesIO()
    Image.fromarray(image[..., ::-1] if image.ndim == 3 else image).save(stream, "JPEG", **options)
    return stream.getvalue()


def textured(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """As photographs are: smooth, with some noise. BGR uint8 [height, width, 3]."""
    noise = np.random.default_rng(seed).integers(0, 25, (height, width, 3), np.uint8)
    return picture(height, width, seed=seed) // 2 + noise


def scan_start(data: bytes) -> int:
    """Where the scan of a JPEG of one scan begins."""
    header = data.rindex(b"\xff\xda")
    return header + 2 + int.from_bytes(data[header + 2 : header + 4], "big")


def damages(data: bytes, random: np.random.Generator) -> Iterator[bytes]:
    """A JPEG, damaged in every way there is: bytes, order, markers, tables, sizes, end."""
    start, end = scan_start(data), len(data) - 2
    first, last = (int(i) for i in sorted(random.integers(start, end, 2)))
    head, tail, hole = data[:first], data[last:], int(random.integers(1, 40))
    some = random.bytes(hole)
    yield _with_bits_flipped(data, start, end, random, int(random.integers(1, 4)))
    yield _with_bits_flipped(data, max(start, end - 6), end, random, 1)
    yield _with_bits_flipped(data, 2, start, random, 1)
    yield data[:first] + some + data[first + hole :][: end - first - hole] + b"\xff\xd9"
    yield head + data[min(first + hole, end) :]
    yield head + some + data[first:]
    yield head + bytes(last - first) + tail
    yield head + b"\xff" * hole + data[first:]
    yield head + tail
    yield head + tail[:-2] + data[first:last] + b"\xff\xd9"
    yield head + b"\xff\xd9"
    yield data[: end - hole % 9] + b"\xff\xd9"
    yield data[:end] + some[:9] + b"\xff\xd9"
    yield data[:end] + bytes(hole % 9) + b"\xff\xd9"
    yield data[:end] + b"\xff" * (hole % 9) + b"\xff\xd9"
    yield data[:end] + data[end - 1 : end] + b"\xff\xd9"
    yield data[:end] + b"\xff\xd9" + data[start:]
    yield head + bytes([0xFF, 0xD0 + hole % 10]) + data[first:]
    yield data[:start] + data[start:].replace(b"\xff\x00", b"\xff", 1)
    yield data[:start] + data[start:end].replace(b"\xff\x00", b"\xff\xff\x00", 1) + data[end:]
    yield from _with_other_headers(data, random)


def _with_bits_flipped(data: bytes, start: int, end: int, random: np.random.Generator, count: int) -> bytes:
    damaged = bytearray(data)
    for position in random.integers(start, end, count):
        damaged[position] ^= 1 << random.integers(8)
    return bytes(damaged)


def _with_other_headers(data: bytes, random: np.random.Generator) -> Iterator[bytes]:
    def replaced(position: int, change: Callable[[int], int]) -> bytes:
        return data[:position] + bytes([change(data[position])]) + data[position + 1 :]

    frame, tables = data.index(b"\xff\xc0"), data.index(b"\xff\xc4")
    header = data.rindex(b"\xff\xda")
    for position in (frame + 6, frame + 8):
        yield replaced(position, lambda side: (side + 16) % 256)
        yield replaced(position, lambda side: side ^ 1)
    for sampling in (0x11, 0x21, 0x12, 0x22):
        yield replaced(frame + 11, lambda _, sampling=sampling: sampling)
    for component in range(data[header + 4]):
        yield replaced(header + 6 + 2 * component, lambda selectors: selectors ^ 0x11)
        yield replaced(header + 6 + 2 * component, lambda selectors: selectors ^ 0x01)
    yield replaced(tables + 4, lambda name: name ^ 0x10)
    yield replaced(tables + 5 + int(random.integers(16)), lambda count: (count + 1) % 256)
    yield replaced(tables + 21 + int(random.integers(12)), lambda symbol: symbol ^ 1)
    yield replaced(tables + 21 + int(random.integers(12)), lambda symbol: symbol ^ 16)
