"""Pictures that are cheap to send and would be costly to decode."""

import io
import re
import struct
import zlib

import cv2
import numpy as np
from pictures import encode, picture
from PIL import Image
from seed_pictures import interlaced_png, png, run_length_bmp, text_pnm, tiff, tiled_tiff


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth with some noise, as photographs are; BGR uint8 [height, width, 3]."""
    noise = np.random.default_rng(0).integers(-4, 5, (height, width, 3), np.int16)
    return np.clip(picture(height, width) + noise, 0, 255).astype(np.uint8)


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A grey progressive JPEG with `scans` scans behind the first, each of one coefficient, all zero."""
    stream = io.BytesIO()
    Image.new("L", (width, height), 128).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    start, first, second = (found.start() for found in list(re.finditer(rb"\xff\xda", data))[:3])
    # Each scan has its Huffman table in front of it.
    tables, more = (data.rindex(b"\xff\xc4", 0, scan) for scan in (first, second))
    scan, pixels = data[tables : first + 7], data[first + 10 : more]
    # The first has all bits, the last all further coefficients.
    head = data[: start + 7] + bytes(3) + data[start + 10 : tables]
    coefficients = [bytes([1 + index % 63]) * 2 + b"\0" for index in range(scans - 1)]
    coefficients.append(bytes([1 + (scans - 1) % 63, 63, 0]))
    return head + b"".join(scan + spectrum + pixels for spectrum in coefficients) + b"\xff\xd9"


def damaged_animation() -> bytes:
    """Its first picture begins with a filter that does not exist; OpenCV 4.11 died of it."""
    rows = bytearray(b"".join(b"\0" + bytes(3 * 16) for _ in range(16)))
    rows[0] = 9
    control = struct.pack(">IIIIIHHBB", 0, 16, 16, 0, 0, 1, 10, 0, 0)
    frame = struct.pack(">I", 2) + zlib.compress(bytes(16 * 49))
    return png(
        *(16, 16),
        (b"acTL", struct.pack(">II", 2, 0)),
        (b"fcTL", control),
        (b"IDAT", zlib.compress(rows)),
        (b"fcTL", b"\0\0\0\1" + control[4:]),
        (b"fdAT", frame),
    )


def black_tiff(
    width: int, height: int, *, samples: int = 3, bits: int = 8, extra: dict | None = None
) -> bytes:
    """Deflate, in strips of 64 rows that are all alike but in the file one by one."""
    rows = min(64, height)
    strip = zlib.compress(bytes(rows * width * samples * bits // 8))
    count = -(-height // rows)
    entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * samples),
        259: (3, [8]),
        262: (3, [2 if samples > 1 else 1]),
        273: (4, [8 + len(strip) * index for index in range(count)]),
        277: (3, [samples]),
        278: (4, [rows]),
        279: (4, [len(strip)] * count),
        **({338: (3, [0] * (samples - 3))} if samples > 3 else {}),
    }
    return tiff(entries | (extra or {}), strip * count)


def refused(side: int = 8000, many: int = 2_000_000) -> dict[str, bytes]:
    """Each is to be refused at once; those of `side` x `side` pixels claim to be pictures.

    Args:
        side: Pixels.
        many: Segments, chunks or blocks, more than any limit of theirs.
    """
    jpeg = encode(np.zeros((side, side, 3), np.uint8), "JPEG")
    scan = jpeg.index(b"\xff\xda")
    chunk = b"\0\0\0\0tEXt" + struct.pack(">I", zlib.crc32(b"tEXt"))
    still = png(side, side)
    rows = bytes(side * (1 + side * 3))
    lengths = run_length_bmp(np.zeros((side, side), np.uint8))
    gif = b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0)
    canvas = struct.pack("<I", side - 1)[:3] * 2
    webp = b"VP8X\x0a\0\0\0" + bytes(4) + canvas + b"JUNK\0\0\0\0" * many
    grey = {259: (3, [1]), 258: (3, [8]), 262: (3, [1]), 256: (4, [side]), 257: (4, [side]), 277: (3, [1])}
    tile = {322: (4, [45_000]), 323: (4, [45_000]), 324: (4, [8]), 325: (4, [8])}
    dots = {322: (4, [1]), 323: (4, [1]), 324: (4, [8] * many), 325: (4, [1] * many)}
    bomb = zlib.compress(bytes(100 * many))
    strip = {273: (4, [8]), 278: (4, [side]), 279: (4, [8])}
    return {
        "JPEG of 1000 scans": many_scans(side, side, 1000),
        "JPEG without its end": jpeg[: len(jpeg) // 2],
        "JPEG without pixels": jpeg[: scan + 14] + b"\xff\xd9",
        "JPEG of comments": jpeg[:2] + b"\xff\xfe\0\2" * many + jpeg[2:],
        "JPEG of tables": jpeg[:2] + b"\xff\xc4\0\2" * many + jpeg[2:],
        "PNG of too many pixels": png(20_000, 20_000),
        "PNG with a chunk of 2 GiB": still[:-12] + b"\x7f\xff\xff\xffIDAT" + bytes(33),
        "PNG of chunks": still[:33] + chunk * many + still[33:],
        "PNG without pixels": png(side, side, (b"IDAT", zlib.compress(b""))),
        "PNG without its last row": png(side, side, (b"IDAT", zlib.compress(rows[: 1 - side * 3], 9))),
        "GIF of blocks": gif + b"\x21\xfe" + b"\1a" * many + b"\0\x3b",
        "WEBP of chunks": b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
        "TIFF of strips in one place": tiff(
            grey | {273: (4, [8] * side), 279: (4, [side] * side), 278: (4, [1])}, bytes(side)
        ),
        "TIFF of a tile of 2 gigapixels": tiff(grey | tile, bytes(8)),
        "TIFF of tiles of a pixel": tiff(grey | dots, bytes(many)),
        "TIFF of a bomb": tiff(
            grey | {259: (3, [8]), 278: (4, [side]), 273: (4, [8]), 279: (4, [len(bomb)])}, bomb
        ),
        "TIFF of bits": tiff(grey | strip | {258: (3, [8] * many)}, bytes(8)),
        "TIFF LZW without pixels": tiff(grey | strip | {259: (3, [5])}, bytes(8)),
        "TIFF PackBits without pixels": tiff(grey | strip | {259: (3, [32773])}, bytes(8)),
        "TIFF of 60000 tags": tiff({tag: (4, [0, 0]) for tag in range(60_000)}, bytes(8)),
        "BMP run lengths without pixels": lengths[:34] + struct.pack("<I", 2) + lengths[38:1078] + b"\0\1",
        "BMP without pixels": encode(np.zeros((side, side, 3), np.uint8), "BMP")[:1000],
        "PPM without pixels": b"P6 %d %d 255\n" % (side, side) + bytes(1000),
        "PPM text without pixels": b"P3 %d %d 255\n" % (side, side) + b"1 " * 1000,
        "PPM of spaces": b"P6" + b" " * many,
        "PPM of comments": b"P2 %d %d 255\n" % (side, side) + b"#\n" * many,
        "base64 of nothing": b"data:image/png;base64," + b"A" * many,
    }


def written(image: np.ndarray, compression: int) -> bytes:
    """A TIFF as OpenCV writes it, with a predictor."""
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_PREDICTOR, 2]
    return cv2.imencode(".tiff", image, options)[1].tobytes()


def costly(width: int, height: int) -> dict[str, bytes]:
    """Each is accepted, of `width` x `height` pixels."""
    image = photograph(height, width)
    black = zlib.compress(bytes(height * (1 + 8 * width)))
    flags = {"save_all": True, "duration": 10}
    tiny = [Image.fromarray(image[:, :, ::-1].copy()) for _ in range(20)]
    for index, frame in enumerate(tiny):
        frame.putpixel((index, 0), (255, 255, 255))
    first = encode(image)
    zipped = b"profile\0\0" + zlib.compress(bytes(2**28), 9)
    # A filter of 4 (Paeth) on every row.
    paeth = zlib.compress((b"\4" + bytes(8 * width)) * height)
    return {
        "JPEG progressive": encode(image, "JPEG", progressive=True),
        "JPEG of 10 scans": many_scans(width, height, 9),
        "JPEG with a restart at each block": encode(image, "JPEG", restart_marker_blocks=1),
        "PNG": first,
        "PNG RGBA 16 bits, Paeth": png(width, height, (b"IDAT", paeth), bits=16, color=6),
        "PNG RGBA 16 bits": png(width, height, (b"IDAT", black), bits=16, color=6),
        "PNG in chunks of a byte": png(
            width, height, *((b"IDAT", black[at : at + 1]) for at in range(len(black))), bits=16, color=6
        ),
        "PNG interlaced": interlaced_png(image),
        "PNG with 256 MB in its profile": first[:33] + png(1, 1, (b"iCCP", zipped))[33:-12] + first[33:],
        "PNG animated": encode(image, append_images=tiny, **flags),
        "WEBP": encode(image, "WEBP"),
        "WEBP lossless": encode(image, "WEBP", lossless=True),
        "WEBP animated": encode(image, "WEBP", append_images=tiny, **flags),
        "GIF": encode(image, "GIF"),
        "GIF animated": encode(image, "GIF", append_images=tiny, **flags),
        "GIF interlaced": encode(image, "GIF", interlace=1),
        "TIFF Deflate": encode(image, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF LZW": encode(image, "TIFF", compression="tiff_lzw"),
        "TIFF PackBits": encode(image, "TIFF", compression="packbits"),
        "TIFF Deflate, predictor": written(image, cv2.IMWRITE_TIFF_COMPRESSION_ADOBE_DEFLATE),
        "TIFF LZW, predictor, 16 bits": written(
            image.astype(np.uint16) * 257, cv2.IMWRITE_TIFF_COMPRESSION_LZW
        ),
        "TIFF in strips of a row": encode(image, "TIFF", tiffinfo={278: 1}),
        "TIFF in tiles of 16x16": tiled_tiff(image),
        "TIFF Deflate, black": black_tiff(width, height),
        "TIFF Deflate RGBA 16 bits": black_tiff(width, height, samples=4, bits=16),
        "BMP": encode(image, "BMP"),
        "BMP run lengths": run_length_bmp(image[..., 1]),
        "PPM": encode(image, "PPM"),
        "PPM text": text_pnm(3, image, 255),
    }
