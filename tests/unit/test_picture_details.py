"""Rare kinds of pixels are decoded or named, and damage that decoders pass over is seen."""

import base64
import io
import re
import struct
import zlib
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from centernet_image.codecs import pnm
from centernet_image.codecs.common import ImageError
from centernet_image.codecs.png import PLAUSIBLE
from centernet_image.decode import decode
from hostile_pictures import photograph
from pictures import encode, picture
from PIL import Image
from seed_pictures import interlaced_png, png, tiff

IMAGE = picture(60, 90)
BLOCKS = picture(30, 23).repeat(2, axis=0).repeat(4, axis=1)[:, :90]
"""Of the same colours in blocks of 2 rows and 4 columns."""

DAMAGE = "damaged or truncated"


def saved(image, name, **options):
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def refuse(data, message=DAMAGE):
    with pytest.raises(ImageError, match=message):
        decode(data)


# TIFF


def in_parts(parts, compression, tags):
    """A TIFF of 60x90 pixels of 3 samples; `parts` are strips, or tiles if the tags say so."""
    parts = [zlib.compress(part) for part in parts] if compression == 8 else parts
    sizes = [len(part) for part in parts]
    offsets = (8 + np.cumsum([0, *sizes[:-1]])).tolist()
    places = {324: offsets, 325: sizes} if 322 in tags else {273: offsets, 279: sizes}
    entries = {256: [90], 257: [60], 258: [8] * 3, 259: [compression], 277: [3], 278: [60]} | places | tags
    return tiff({tag: (4 if tag > 272 else 3, values) for tag, values in entries.items()}, b"".join(parts))


def ycbcr(across, down, compression=1, **tags):
    """`BLOCKS` with one pair of colours for so many pixels."""
    pixels = cv2.cvtColor(BLOCKS, cv2.COLOR_BGR2YCrCb)[..., [0, 2, 1]]
    pixels = np.pad(pixels, ((0, -60 % down), (0, -90 % across), (0, 0)), "edge")
    blocks = pixels.reshape(len(pixels) // down, down, -1, across, 3).swapaxes(1, 2)
    luma, chroma = blocks[..., 0].reshape(*blocks.shape[:2], -1), blocks[:, :, 0, 0, 1:]
    part = np.concatenate([luma, chroma], axis=2).tobytes()
    more = {int(tag[1:]): values for tag, values in tags.items()}
    return in_parts([part], compression, {262: [6], 530: [across, down]} | more)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_ycbcr_as_pillow_writes_it(compression):
    data = saved(Image.fromarray(IMAGE[..., ::-1]).convert("YCbCr"), "TIFF", compression=compression)
    np.testing.assert_allclose(decode(data), IMAGE, atol=3)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (4, 2)])
def test_subsampled_ycbcr(subsampling, compression):
    np.testing.assert_allclose(decode(ycbcr(*subsampling, compression)), BLOCKS, atol=3)
    size = len(ycbcr(*subsampling)) - len(in_parts([b""], 1, {262: [6], 530: [1, 1]}))
    if compression == 1:
        refuse(ycbcr(*subsampling, t279=[size - 1]), "too few bytes for its pixels")


def test_ycbcr_that_does_not_say_how_it_is_subsampled_is_2x2():
    np.testing.assert_array_equal(decode(ycbcr(2, 2, t530=[2])), decode(ycbcr(2, 2)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ycbcr(4, 4), "3 YCbCr samples of 8 bits, subsampled 4x4, expected"),
        (ycbcr(1, 1, t530=[0, 0]), "subsampled 0x0, expected"),
        (ycbcr(1, 1, t284=[2]), "not in planes"),
        (
            in_parts([bytes(768)] * 24, 1, {262: [6], 530: [1, 1], 322: [16], 323: [16]}),
            "unusual samples in tiles",
        ),
    ],
)
def test_ycbcr_that_is_not_supported(data, message):
    refuse(data, message)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("bits", [8, 16])
def test_planes_in_tiles(bits, compression):
    planes = np.pad(IMAGE, ((0, 4), (0, 6), (0, 0)), "edge").transpose(2, 0, 1)[::-1]
    planes = planes if bits == 8 else planes.astype("<u2") * 257
    tiles = [
        plane[top : top + 16, left : left + 48].tobytes()
        for plane in planes
        for top in range(0, 64, 16)
        for left in (0, 48)
    ]
    tags = {258: [bits] * 3, 262: [2], 284: [2], 322: [48], 323: [16]}
    if bits == 8:
        np.testing.assert_array_equal(decode(in_parts(tiles, compression, tags)), IMAGE)
    else:
        refuse(in_parts(tiles, compression, tags), "unusual samples in tiles, expected strips")


# BMP


def bmp(bits, compression, pixels, extra=b"", *, header_size=40, height=40, size=0, offset=None):
    """Of 40 columns; `extra` is what is between the first 40 bytes of the header and the pixels."""
    offset = 54 + len(extra) if offset is None else offset
    header = struct.pack("<IiiHHIIiiII", header_size, 40, height, 1, bits, compression, size, 0, 0, 0, 0)
    return struct.pack("<2sIII", b"BM", 0, 0, offset) + header + extra + pixels


@pytest.mark.parametrize("header_size", [40, 108])
@pytest.mark.parametrize("height", [40, -40])
@pytest.mark.parametrize(
    "masks",
    [
        (0xFF0000, 0xFF00, 0xFF),
        (0xFF, 0xFF00, 0xFF0000),
        (0xFF000000, 0xFF0000, 0xFF00),
        (0x3FF00000, 0xFFC00, 0x3FF),
        (0xF800, 0x7E0, 0x1F),
        (0x7C00, 0x3E0, 0x1F),
        (0x1F, 0x7E0, 0xF800),
        (0xF00, 0xF0, 0xF),
    ],
)
def test_any_masks(masks, height, header_size):
    image = picture(40, 40)
    words, expected = np.zeros((40, 40), np.uint32), np.empty_like(image)
    for channel, mask in zip((2, 1, 0), masks, strict=True):
        shift = (mask & -mask).bit_length() - 1
        top = mask >> shift
        values = image[..., channel].astype(np.uint32) * top // 255
        words |= values << shift
        expected[..., channel] = np.round(values * 255 / top)
    bits = 32 if max(masks) > 0xFFFF else 16
    extra = struct.pack("<III", *masks).ljust(header_size - 40 if header_size > 40 else 12, b"\0")
    data = bmp(
        bits,
        3,
        words[:: -1 if height > 0 else 1].astype(f"<u{bits // 8}").tobytes(),
        extra,
        header_size=header_size,
        height=height,
    )
    np.testing.assert_allclose(decode(data), expected, atol=1 if max(masks) > 0xFFFFFF else 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bmp(32, 3, bytes(6400), struct.pack("<III", 0xFF, 0xFF00, 0xF0F0000)), "a mask 0xf0f0000, expected"),
        (bmp(32, 3, bytes(6400), struct.pack("<III", 0, 0xFF00, 0xFF0000)), "a mask 0x0, expected"),
        (bmp(16, 3, bytes(3200), struct.pack("<III", 0xFF, 0xFF00, 0xFF0000)), "a mask 0xff0000, expected"),
        (bmp(24, 3, bytes(4800), bytes(12)), "24 bits a pixel, expected one of 16, 32"),
        (bmp(2, 0, bytes(480)), "2 bits a pixel, expected one of 1, 4, 8, 16, 24, 32"),
        (bmp(24, 0, bytes(4800), offset=0), "its pixels begin at byte 0, within its header"),
        (bmp(32, 3, bytes(6400)), "its pixels begin at byte 54, within its header"),
        (bmp(24, 0, bytes(4799)), "its pixels need 4800 bytes, 4799 are there"),
    ],
)
def test_bitmaps_that_contradict_themselves_or_are_not_supported(data, message):
    refuse(data, message)


def run_lengths(bits, rows, end=b"\0\1"):
    """Of rows that are 40 pixels of a grey each, whose codes are given."""
    palette = b"".join(bytes([level * 255 // (2**bits - 1)] * 3 + [0]) for level in range(2**bits))
    pixels = b"".join(rows) + end
    return bmp(bits, {8: 1, 4: 2}[bits], pixels, palette, size=len(pixels))


@pytest.mark.parametrize("bits", [4, 8])
def test_run_lengths_hold_all_rows(bits):
    code = 0xAA if bits == 8 else 0x99
    row = bytes([30, code, 0, 10, *[code] * (10 * bits // 8), *bytes(bits == 4), 0, 0])
    decoded = decode(run_lengths(bits, [row] * 40))
    assert (decoded == decoded[0, 0]).all()
    assert decoded[0, 0, 0] in (0x99, 0xAA)
    for rows in (39, 20, 1):
        refuse(run_lengths(bits, [row] * rows))
    refuse(run_lengths(bits, [row] * 40, b""), "its run lengths have no end")


def test_run_lengths_may_skip_rows():
    row = b"\x28\xaa\0\0"
    skipped = decode(run_lengths(8, [row] * 20 + [b"\0\2\0\5"] + [row] * 15))
    assert (skipped == 0).all(axis=(1, 2)).sum() == 5
    refuse(run_lengths(8, [row] * 20 + [b"\0\2\0\5"] + [row] * 14))


# JPEG


def cut_after(data, scans):
    """A JPEG of so many of its scans, and its end."""
    starts = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    tables = data.rfind(b"\xff\xc4", starts[scans - 1], starts[scans])
    return data[: tables if tables > 0 else starts[scans]] + b"\xff\xd9"


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_all_scans_of_a_progressive_jpeg_must_be_there(mode):
    data = saved(Image.fromarray(photograph(50, 60)).convert(mode), "JPEG", progressive=True)
    scans = data.count(b"\xff\xda")
    assert scans >= 6
    assert decode(data).shape == (50, 60, 3)
    for count in range(1, scans):
        refuse(cut_after(data, count), "scans are missing")


def test_all_components_of_a_jpeg_in_single_scans_must_be_there():
    grey = saved(Image.fromarray(IMAGE[..., 0]), "JPEG")
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    header = b"\xff\xc0\0\x11" + grey[frame + 4 : frame + 9] + b"\3\1\x11\0\2\x11\0\3\x11\0"
    head = grey[:frame] + header + grey[frame + 13 : scan]
    scans = [grey[scan : scan + 5] + bytes([component]) + grey[scan + 6 : -2] for component in (1, 2, 3)]
    assert decode(head + b"".join(scans) + b"\xff\xd9").shape == (60, 90, 3)
    refuse(head + b"".join(scans[:2]) + b"\xff\xd9", "scans are missing")


# PNG


@pytest.mark.parametrize("options", [{}, {"bits": 1, "color": 0}, {"bits": 16, "color": 6}, {"lace": 1}])
def test_rows_that_a_png_claims_are_counted(monkeypatch, options):
    """If few bytes stand for them, before there is a picture to fill."""
    if options.get("lace"):
        rows = zlib.decompress(interlaced_png(np.zeros((301, 203, 3), np.uint8))[41:-16])
    else:
        samples = {0: 1, 2: 3, 6: 4}[options.get("color", 2)]
        rows = bytes(301 * (1 + (203 * samples * options.get("bits", 8) + 7) // 8))
    whole = zlib.compress(rows)
    assert len(whole) * PLAUSIBLE < len(rows)
    data = png(203, 301, (b"IDAT", whole[:20]), (b"IDAT", whole[20:]), **options)
    assert decode(data).shape == (301, 203, 3)
    monkeypatch.setattr("centernet_image.codecs.png.opencv", None)
    short = f"its pixels need {len(rows)} bytes, {len(rows) - 1} are there"
    refuse(png(203, 301, (b"IDAT", zlib.compress(rows[1:])), **options), short)


def test_a_png_of_plausible_size_is_decoded_once(monkeypatch):
    monkeypatch.setattr("centernet_image.codecs.png.inflated", None)
    np.testing.assert_array_equal(decode(encode(photograph(60, 90))), photograph(60, 90))


# PGM and PPM


@pytest.mark.parametrize("at_once", [1, 7, 2**17])
@pytest.mark.parametrize(
    "text",
    [b"1.5 " * 256, b"-1 " * 256, b"1 x " * 256, b"1 " * 255 + b"1x", b"1 " * 255 + b"1.5", b"1\0" * 256],
)
@pytest.mark.parametrize("kind", [b"P1 16 16\n", b"P2 16 16 255\n"])
def test_text_holds_numbers_only(monkeypatch, kind, text, at_once):
    monkeypatch.setattr(pnm, "READ_AT_ONCE", at_once)
    refuse(kind + text, "among its numbers")


@pytest.mark.parametrize("at_once", [1, 7, 2**17])
@pytest.mark.parametrize("kind", [b"P1 16 16\n", b"P2 16 16 1\n"])
def test_anything_may_follow_text(monkeypatch, kind, at_once):
    monkeypatch.setattr(pnm, "READ_AT_ONCE", at_once)
    expected = decode(kind + b"1 " * 256)
    for behind in (b"\nfine 7", b"\0", b"\nP2 16 16 255\n" + b"2 " * 256):
        np.testing.assert_array_equal(decode(kind + b"1 " * 256 + behind), expected)


# EXIF


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("kind", "value"), [(3, "HH"), (4, "I")])
def test_orientation_of_any_integers(kind, value, order, prefix):
    entry = struct.pack(f"{order}HHI{value}", 0x112, kind, 1, *[6, 0][: len(value)])
    header = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, 1)
    exif = prefix + header + entry + bytes(4)
    chunk = png(1, 1, (b"eXIf", exif))[33:-12]
    data = encode(IMAGE)
    np.testing.assert_array_equal(decode(data[:33] + chunk + data[33:]), np.rot90(IMAGE, -1))
    jpeg = b"Exif\0\0" + exif.removeprefix(b"Exif\0\0")
    jpeg = b"\xff\xe1" + struct.pack(">H", len(jpeg) + 2) + jpeg
    data = encode(IMAGE, "JPEG")
    assert decode(data[:2] + jpeg + data[2:]).shape == (90, 60, 3)


# Base64


JPEG = encode(photograph(60, 90), "JPEG")
TEXT = base64.b64encode(JPEG)
LONG = b"data:image/jpeg;name=" + b"a" * 300 + b";charset=utf-8;base64,"


@pytest.mark.parametrize(
    "text",
    [
        base64.urlsafe_b64encode(JPEG),
        b"data:image/jpeg;base64," + base64.urlsafe_b64encode(JPEG).rstrip(b"="),
        b"data:image/jpeg;base64," + quote(TEXT, safe="").encode(),
        re.sub(b"%..", lambda code: code[0].lower(), LONG + quote(base64.encodebytes(JPEG)).encode()),
        b"\xef\xbb\xbf" + TEXT,
        b"\xef\xbb\xbf \ndata:image/jpeg;base64," + TEXT,
        LONG + TEXT,
    ],
)
def test_forms_of_base64(text):
    np.testing.assert_array_equal(decode(text), decode(JPEG))


def test_alphabets_of_base64_are_not_mixed():
    refuse(TEXT[:99] + b"-" + TEXT[100:], "damaged base64 text")
    refuse(b"data:image/jpeg;base64," + TEXT[:99] + b"%41%" + TEXT[100:], "damaged base64 text")
