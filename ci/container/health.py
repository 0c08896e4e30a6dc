#!/usr/bin/env python3
"""Is the server healthy? One real inference says so; a server that drains is not.

The readiness endpoint is not enough: it stays green when the process of a Python model has died.
"""

import json
import os
import struct
import sys
import urllib.request
from pathlib import Path

URL = os.environ.get("HEALTH_URL", "http://127.0.0.1:8000/v2/models/centernet/infer")
DRAINING = Path(os.environ.get("DRAINING", "/tmp/draining"))  # noqa: S108
TIMEOUT_S = 10
SIDE = 64


def main() -> None:
    """Exits with 1 and a line on what is wrong, unless all is well."""
    if DRAINING.exists():
        sys.exit("health: draining")
    header, picture = _request()
    request = urllib.request.Request(  # noqa: S310
        URL,
        data=header + picture,
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            outputs = {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"health: {error}")
    if outputs.get("num_detections", [-1])[0] < 0:
        sys.exit(f"health: found no num_detections in {outputs}")


def _request() -> tuple[bytes, bytes]:
    pixels = bytes(3 * SIDE * SIDE)
    bitmap = struct.pack("<2sIII", b"BM", 54 + len(pixels), 0, 54)
    bitmap += struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, len(pixels), 0, 0, 0, 0) + pixels
    data = struct.pack("<I", len(bitmap)) + bitmap
    image = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"binary_data_size": len(data)},
    }
    output = {"name": "num_detections", "parameters": {"binary_data": False}}
    return json.dumps({"inputs": [image], "outputs": [output]}).encode(), data


if __name__ == "__main__":
    main()
