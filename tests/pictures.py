"""Pictures for tests: smooth ones of any size, encoded, and hostile ones."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image


def picture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A smooth random picture, BGR uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def encode(image: np.ndarray, name: str = "PNG", **options: object) -> bytes:
    """Encodes BGR uint8 [height, width, 3] in Pillow's format `name`, nearly lossless."""
    stream = io.BytesIO()
    quality = {"quality": 95} if name in ("JPEG", "WEBP") else {}
    Image.fromarray(image[..., ::-1]).save(stream, name, **quality | options)
    return stream.getvalue()


def bomb(height: int, width: int) -> bytes:
    """A valid black PNG with one bit per pixel: small as a file, huge when decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
