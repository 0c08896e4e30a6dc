"""What a picture costs: time against plain JPEGs of as many pixels, and memory.

    PYTHONPATH=tests python -m benchmarks.pictures

Each picture is decoded in a process of its own. Time is the processor's: a busy machine does not count.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import hostile_pictures
import numpy as np
from centernet_image.codecs.common import ImageError
from centernet_image.decode import decode
from pictures import encode

Measured = tuple[float, float, str]
"""Milliseconds, megabytes of growth, and the size of the picture or the error."""


def measure(data: bytes) -> Measured:
    """Decodes in a child process; the best time of three."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.pictures", "--child"], input=data, capture_output=True, check=True
    )
    milliseconds, megabytes, result = json.loads(child.stdout)
    return milliseconds, megabytes, result


def work(data: bytes) -> Measured:
    """What `measure` returns, in this process."""
    cv2.setNumThreads(1)
    decode(encode(np.zeros((16, 16, 3), np.uint8), "JPEG"))
    times = []
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # The peak begins anew.
    before = memory_mb("VmRSS")
    for _ in range(3):
        start = time.process_time()
        try:
            height, width = decode(data).shape[:2]
            result = f"{width}x{height}"
        except ImageError as error:
            result = str(error)
        times.append(time.process_time() - start)
    return 1000 * min(times), memory_mb("VmHWM") - before, result


def memory_mb(name: str) -> float:
    """A line of this process's status."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) / 1024 if found else 0.0


def main() -> None:
    """Prints a table of the refused and of the accepted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("--size", default="2000x1500", help="of the accepted pictures (%(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(work(sys.stdin.buffer.read())))
        return
    for name, data in hostile_pictures.refused().items():
        milliseconds, megabytes, result = measure(data)
        print(
            f"{name:36} {len(data):9} bytes {milliseconds:7.1f} ms {megabytes:6.1f} MB  {result}", flush=True
        )
    width, height = map(int, arguments.size.split("x"))
    image = hostile_pictures.photograph(height, width)
    plain = {
        "JPEG": encode(image, "JPEG"),
        "JPEG of quality 100, 4:4:4": encode(image, "JPEG", quality=100, subsampling=0),
    }
    base_ms = dict.fromkeys(plain, 0.0)
    print(f"{'':71} against {' and '.join(plain)}")
    for name, data in (plain | hostile_pictures.costly(width, height)).items():
        milliseconds, megabytes, result = measure(data)
        if name in plain:
            base_ms[name] = milliseconds
        ratios = " ".join(f"{milliseconds / base:5.1f}" for base in base_ms.values() if base)
        print(
            f"{name:36} {len(data):9} bytes {milliseconds:7.1f} ms {megabytes:6.1f} MB {ratios}  {result}",
            flush=True,
        )


if __name__ == "__main__":
    main()
