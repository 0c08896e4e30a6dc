#!/usr/bin/env python3
"""Is the server healthy? One real inference says so; a server that drains is not.

For whatever runs a command as its health check. From 26.04 on Triton's own readiness tells as much of a drain
and of a dead process of a Python model; before, it stays green.
"""

import http.client
import json
import os
import struct
import sys
import urllib.error
import urllib.request
from pathlib import Path

URL = os.environ.get("HEALTH_URL", "http://127.0.0.1:8000/v2/models/centernet/infer")
DRAINING = Path(os.environ.get("DRAINING", "/tmp/draining"))  # noqa: S108
TIMEOUT_S = 10
SIDE = 64


# A proxy of the environment knows nothing of this container's own ports.
urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler({})))


class UnhealthyError(Exception):
    """What is wrong; `busy` if it may be no more than load: refused, or no answer in time."""

    def __init__(self, message: str, *, busy: bool = False) -> None:
        super().__init__(message)
        self.busy = busy


def main() -> None:
    """Exits with 1 and a line on what is wrong, unless all is well."""
    if DRAINING.exists():
        sys.exit("health: draining")
    try:
        infer(URL)
    except UnhealthyError as error:
        sys.exit(f"health: {error}")


def infer(url: str) -> None:
    """Has a black picture go through the whole ensemble.

    Raises:
        UnhealthyError: It came back without detections.
    """
    header, picture = _request()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    try:
        request = urllib.request.Request(url, data=header + picture, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            outputs = {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
            count = int(outputs["num_detections"][0])
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(1000).decode(errors="replace").split())
        raise UnhealthyError(f"{error}: {said}", busy=error.code == 503) from error
    except TimeoutError as error:
        raise UnhealthyError(f"no answer within {TIMEOUT_S} s", busy=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnhealthyError(str(error)) from error
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UnhealthyError(f"{url} answers no num_detections: {error!r}") from error
    if count < 0:
        raise UnhealthyError(f"found {count} detections")


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
