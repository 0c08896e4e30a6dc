"""Small valid pictures of every format and of what formats can be: what mutations and limits start from."""

import base64
import io
import struct
import zlib
from functools import cache

import cv2
import numpy as np
from pictures import encode, picture
from PIL import ExifTags, Image

HEIGHT, WIDTH = 40, 56


@cache
def seeds() -> dict[str, bytes]:
    """Encoded pictures of `HEIGHT` x `WIDTH` pixels, by name; the name's first word is the format."""
    image = picture(HEIGHT, WIDTH)
    rgb = Image.fromarray(image[..., ::-1])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    others = [Image.fromarray(picture(HEIGHT, WIDTH, seed=seed)) for seed in (1, 2)]
    animated = {"save_all": True, "append_images": others, "duration": 50}
    return {
        "JPEG": encode(image, "JPEG"),
        "JPEG progressive": encode(image, "JPEG", progressive=True),
        "JPEG 4:4:4 with restarts": encode(image, "JPEG", subsampling=0, restart_marker_blocks=2),
        "JPEG upright": encode(image, "JPEG", exif=exif, comment=b"made for tests"),
        "JPEG grey": _save(rgb.convert("L"), "JPEG"),
        "JPEG CMYK": _save(rgb.convert("CMYK"), "JPEG"),
        "PNG": encode(image),
        "PNG upright": encode(image, exif=exif),
        "PNG palette": _save(rgb.quantize(16), "PNG", transparency=3),
        "PNG alpha": _save(rgb.convert("RGBA"), "PNG"),
        "PNG 16 bits": cv2.imencode(".png", image.astype(np.uint16) * 257)[1].tobytes(),
        "PNG 1 bit": _save(rgb.convert("1"), "PNG"),
        "PNG interlaced": interlaced_png(image),
        "PNG animated": encode(image, **animated),
        "WEBP": encode(image, "WEBP"),
        "WEBP lossless": encode(image, "WEBP", lossless=True),
        "WEBP alpha": _save(rgb.convert("RGBA"), "WEBP", exif=exif),
        "WEBP animated": encode(image, "WEBP", **animated),
        "BMP": encode(image, "BMP"),
        "BMP palette": _save(rgb.quantize(16), "BMP"),
        "BMP 32 bits": _save(rgb.convert("RGBA"), "BMP"),
        "BMP run lengths": run_length_bmp(image[..., 1] // 64),
        "TIFF": encode(image, "TIFF"),
        "TIFF LZW": encode(image, "TIFF", compression="tiff_lzw"),
        "TIFF Deflate": encode(image, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF PackBits": encode(image, "TIFF", compression="packbits"),
        "TIFF palette": _save(rgb.quantize(16), "TIFF"),
        "TIFF 16 bits": cv2.imencode(".tiff", image.astype(np.uint16) * 257)[1].tobytes(),
        "TIFF CMYK": _save(rgb.convert("CMYK"), "TIFF"),
        "TIFF tiles": tiled_tiff(image),
        "PPM": encode(image, "PPM"),
        "PPM 16 bits": b"P6 56 40 1023\n" + (image[..., ::-1].astype(np.uint16) * 4).astype(">u2").tobytes(),
        "PPM text": text_pnm(3, image[..., ::-1], 255),
        "PGM text": text_pnm(2, image[..., 0].astype(np.uint16) * 4, 1023),
        "PBM text": text_pnm(1, image[..., 0] >> 7, None),
        "PBM": _save(rgb.convert("1"), "PPM"),
        "GIF": _save(rgb.quantize(64), "GIF", interlace=1),
        "GIF animated": _save(rgb, "GIF", **animated),
        "base64": base64.b64encode(encode(image, "JPEG")),
        "base64 URI": b"data:image/png;base64," + base64.b64encode(encode(image)),
    }


def png(
    width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, color: int = 2, lace: int = 0
) -> bytes:
    """A PNG of these chunks between its header and its end."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, lace)
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def interlaced_png(image: np.ndarray) -> bytes:
    """Adam7; Pillow reads it and does not write it."""
    rows = bytearray()
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        for row in image[y::dy, x::dx, ::-1]:
            rows += b"\0" + row.tobytes()
    height, width = image.shape[:2]
    return png(width, height, (b"IDAT", zlib.compress(rows)), lace=1)


def run_length_bmp(levels: np.ndarray) -> bytes:
    """BI_RLE8 of levels 0 to 255, uint8 [height, width]."""
    rows = []
    for row in levels[::-1]:
        ends = np.flatnonzero(np.append(row[1:] != row[:-1], True)) + 1
        for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
            for at in range(start, end, 255):
                rows.append(bytes([min(255, end - at), row[start]]))
        rows.append(b"\0\0")
    pixels = b"".join(rows)[:-2] + b"\0\1"
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    height, width = levels.shape
    offset = 14 + 40 + len(palette)
    header = struct.pack("<2sIII", b"BM", offset + len(pixels), 0, offset)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return header + palette + pixels


def tiff(entries: dict[int, tuple[int, list[int]]], data: bytes) -> bytes:
    """A little-endian TIFF: `data` at byte 8, then tags with their types (3 short, 4 long) and values."""
    directory, extra = b"", b""
    start = 8 + len(data) + len(data) % 2
    behind = start + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack("<I", behind + len(extra)), extra + packed
        directory += struct.pack("<HHI4s", tag, kind, len(values), packed)
    header = struct.pack("<2sHI", b"II", 42, start)
    pad = bytes(len(data) % 2)
    return header + data + pad + struct.pack("<H", len(entries)) + directory + bytes(4) + extra


def tiled_tiff(image: np.ndarray) -> bytes:
    """Tiles of 16x16, each compressed with Deflate."""
    height, width = image.shape[:2]
    rows, columns = -(-height // 16), -(-width // 16)
    padded = np.zeros((rows * 16, columns * 16, 3), np.uint8)
    padded[:height, :width] = image[..., ::-1]
    tiles = [
        zlib.compress(padded[y : y + 16, x : x + 16].tobytes())
        for y in range(0, rows * 16, 16)
        for x in range(0, columns * 16, 16)
    ]
    offsets = (8 + np.cumsum([0, *map(len, tiles[:-1])])).tolist()
    entries = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [8, 8, 8]),
        259: (3, [8]),
        262: (3, [2]),
        277: (3, [3]),
        322: (3, [16]),
        323: (3, [16]),
        324: (4, offsets),
        325: (4, [len(tile) for tile in tiles]),
    }
    return tiff(entries, b"".join(tiles))


def text_pnm(kind: int, samples: np.ndarray, maximum: int | None) -> bytes:
    """P1, P2 or P3; samples RGB as given."""
    height, width = samples.shape[:2]
    header = f"P{kind}\n# made for tests\n{width} {height}\n" + ("" if maximum is None else f"{maximum}\n")
    return header.encode() + b"\n".join(b" ".join(b"%d" % v for v in row.ravel().tolist()) for row in samples)


def _save(image: Image.Image, name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()
