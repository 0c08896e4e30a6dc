"""What a picture costs: time against a plain JPEG of as many pixels, and memory.

    PYTHONPATH=tests python -m benchmarks.pictures

Each picture is decoded in a process of its own. Time is the processor's, so that a busy machine does not count.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import cv2
import hostile_pictures
import numpy as np
from centernet_image import ImageError, decode
from pictures import encode


def measure(data: bytes) -> dict[str, object]:
    """Decodes in a child process; its best of three times, its growth and what came out."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.pictures", "--child"], input=data, capture_output=True, check=True
    )
    return json.loads(child.stdout)


def work(data: bytes) -> dict[str, object]:
    """What `measure` returns, in this process."""
    cv2.setNumThreads(1)
    decode(encode(np.zeros((16, 16, 3), np.uint8), "JPEG"))
    times = []
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        start = time.process_time()
        try:
            height, width = decode(data).shape[:2]
            result = f"{width}x{height}"
        except ImageError as error:
            result = str(error)
        times.append(time.process_time() - start)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    return {"ms": 1000 * min(times), "grown_mb": grown_kb / 1024, "bytes": len(data), "result": result}


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
        found = measure(data)
        print(
            f"{name:38} {len(data):9} bytes {found['ms']:8.1f} ms {found['grown_mb']:6.1f} MB  {found['result']}"
        )
    width, height = map(int, arguments.size.split("x"))
    plain = measure(encode(hostile_pictures.photograph(height, width), "JPEG"))
    print(f"{'JPEG':38} {plain['bytes']:9} bytes {plain['ms']:8.1f} ms {plain['grown_mb']:6.1f} MB")
    for name, data in hostile_pictures.dear(width, height).items():
        found = measure(data)
        ratio = found["ms"] / plain["ms"]
        print(
            f"{name:38} {len(data):9} bytes {found['ms']:8.1f} ms {found['grown_mb']:6.1f} MB  "
            f"{ratio:5.1f} x  {found['result']}"
        )


if __name__ == "__main__":
    main()
