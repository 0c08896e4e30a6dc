"""Mutated pictures through the decoder, in child processes: `ci/fuzz-pictures --help`.

Whatever the bytes, the decoder returns a picture or raises ImageError. When a child dies instead, the
mutation that it died of is named, and the next child goes on behind it. Mutation number N is the same in
every run.
"""

import argparse
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from centernet_image.codecs.common import ImageError
from centernet_image.decode import Limits, decode
from seed_pictures import seeds

LIMITS = Limits(max_bytes=2**20, max_pixels=2**20, min_side=1)
STALL_S = 60
INTERESTING = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


def mutation(number: int, pictures: list[bytes]) -> bytes:
    """Number `number` of the mutations of `pictures`."""
    rng = random.Random(number)
    data = bytearray(pictures[number % len(pictures)])
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        if data:
            _damage(rng, data, pictures)
    # Otherwise every mutation of a PNG ends at its checksums.
    return _with_checksums(bytes(data)) if rng.random() < 0.8 else bytes(data)


def _damage(rng: random.Random, data: bytearray, pictures: list[bytes]) -> None:
    # Headers are where the decisions fall.
    start = rng.randrange(min(len(data), rng.choice((16, 64, 512, len(data)))))
    stop = start + rng.choice((1, 1, 2, 4, 16, 256))
    kind = rng.randrange(9)
    if kind == 0:
        data[start] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[start] = rng.randrange(256)
    elif kind == 2:
        width = rng.choice("BHI")
        order = rng.choice("<>")
        value = rng.choice(INTERESTING) % 2 ** (8 * struct.calcsize(width))
        data[start : start + struct.calcsize(width)] = struct.pack(order + width, value)
    elif kind == 3:
        del data[start:stop]
    elif kind == 4:
        data[start:start] = data[start:stop]
    elif kind == 5:
        data[start:stop] = bytes([rng.choice((0, 255))]) * len(data[start:stop])
    elif kind == 6:
        data[start:stop] = rng.randbytes(len(data[start:stop]))
    elif kind == 7:
        del data[rng.randrange(len(data)) :]
    else:
        other = rng.choice(pictures)
        place = rng.randrange(len(other))
        data[start:stop] = other[place : place + stop - start]


def _with_checksums(data: bytes) -> bytes:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    fixed, position = [data[:8]], 8
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        end = position + 8 + length
        if end + 4 > len(data):
            break
        fixed.append(data[position:end] + struct.pack(">I", zlib.crc32(data[position + 4 : end])))
        position = end + 4
    return b"".join([*fixed, data[position:]])


def work(first: int, last: int, progress: Path) -> None:
    """Decodes the mutations `first` to `last` - 1; `progress` holds the number of the one at work."""
    pictures = list(seeds().values())
    accepted = 0
    file = os.open(progress, os.O_WRONLY)
    for number in range(first, last):
        os.pwrite(file, struct.pack("<q", number), 0)
        if os.environ.get("FUZZ_PICTURES_DIE_AT") == str(number):  # How a test sees that deaths are seen.
            os.abort()
        try:
            image = decode(mutation(number, pictures), LIMITS)
        except ImageError as error:
            if "\n" in str(error):
                raise AssertionError(f"more than one line: {error}") from error
            continue
        accepted += 1
        assert image.dtype == np.uint8
        assert image.shape[2:] == (3,)
        assert image.shape[0] * image.shape[1] <= LIMITS.max_pixels
    print(accepted)


def run(first: int, last: int, *, stall_s: float = STALL_S) -> tuple[int, list[str]]:
    """Decodes mutations in children; returns how many gave a picture, and what went wrong."""
    accepted, failures = 0, []
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with tempfile.NamedTemporaryFile() as file:
        progress = Path(file.name)
        while first < last:
            progress.write_bytes(struct.pack("<q", first))
            command = [sys.executable, __file__, "--child", str(first), str(last), str(progress)]
            child = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            out, err, stalled = _wait(child, progress, stall_s)
            if child.returncode == 0:
                return accepted + int(out), failures
            (number,) = struct.unpack("<q", progress.read_bytes())
            last_line = (err.strip().splitlines() or [""])[-1]
            how = f"stalled for {stall_s} s" if stalled else f"exit {child.returncode}: {last_line}"
            failures.append(f"mutation {number}: {how}")
            first = number + 1
    return accepted, failures


def _wait(child: "subprocess.Popen[str]", progress: Path, stall_s: float) -> tuple[str, str, bool]:
    seen = b""
    while True:
        try:
            return *child.communicate(timeout=stall_s), False
        except subprocess.TimeoutExpired:
            now = progress.read_bytes()
            if now == seen:
                child.kill()
                return *child.communicate(), True
            seen = now


def main() -> int:
    """Runs a number of mutations and prints what died."""
    parser = argparse.ArgumentParser(prog="ci/fuzz-pictures", description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, nargs="?", default=200_000, help="mutations (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the first mutation and end")
    parser.add_argument("--child", nargs=3, metavar=("FIRST", "LAST", "PROGRESS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        first, last, progress = arguments.child
        work(int(first), int(last), Path(progress))
        return 0
    if arguments.save:
        arguments.save.write_bytes(mutation(arguments.first, list(seeds().values())))
        return 0
    start = time.monotonic()
    accepted, failures = run(arguments.first, arguments.first + arguments.count)
    print(*failures, sep="\n", end="\n" if failures else "")
    print(
        f"{arguments.count} mutations of {len(seeds())} pictures: {accepted} gave a picture, "
        f"{len(failures)} failed, {time.monotonic() - start:.0f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
