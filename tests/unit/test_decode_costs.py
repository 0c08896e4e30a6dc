"""A picture is decoded once, and costs little more memory than its pixels."""

import io
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from centernet_image.codecs import pnm
from centernet_image.codecs import tiff as tiff_codec
from centernet_image.codecs.common import ImageError
from centernet_image.decode import decode
from pictures import encode, picture
from PIL import Image
from seed_pictures import text_pnm, tiff

IMAGE = picture(300, 400)
COMPRESSIONS = ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate")


def noise(height, width, channels, dtype):
    top = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, top, (height, width, channels), dtype, endpoint=True)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_tiff_has_one_decoder(monkeypatch, compression):
    def reached(*_args, **_options):
        raise AssertionError("decoded again")

    monkeypatch.setattr(tiff_codec, "opencv", reached)
    if compression in ("raw", "tiff_adobe_deflate"):
        monkeypatch.setattr(tiff_codec.Image, "open", reached)
    np.testing.assert_array_equal(decode(encode(IMAGE, "TIFF", compression=compression)), IMAGE)


@pytest.mark.parametrize("rows", [1, 2, 7, 300])
@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("channels", [1, 3])
def test_strips_of_any_height(monkeypatch, channels, compression, rows):
    """Short ones are undone together, as many as fit."""
    monkeypatch.setattr(tiff_codec, "AT_ONCE", 5 * 400 * channels)
    image = noise(300, 400, channels, np.uint8).repeat(3 // channels, 2)
    file = io.BytesIO()
    Image.fromarray(image[..., ::-1] if channels == 3 else image[..., 0]).save(
        file, "TIFF", compression=compression, tiffinfo={278: rows}
    )
    np.testing.assert_array_equal(decode(file.getvalue()), image)


def test_lzw_in_the_order_of_before_1993():
    pixels = noise(8, 8, 3, np.uint8)
    codes = [256, *pixels.ravel().tolist(), 257]
    strip = sum(code << 9 * index for index, code in enumerate(codes)).to_bytes(
        len(codes) * 9 // 8 + 1, "little"
    )
    entries = {
        256: [8],
        257: [8],
        258: [8] * 3,
        259: [5],
        262: [2],
        273: [8],
        277: [3],
        278: [8],
        279: [len(strip)],
    }
    data = tiff({tag: (3, values) for tag, values in entries.items()}, strip)
    np.testing.assert_array_equal(decode(data), pixels[..., ::-1])


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("channels", [3, 4])
def test_tiles_at_the_edges(compression, channels):
    pixels = noise(48, 64, channels, np.uint8)
    tiles = [pixels[y : y + 16, x : x + 32].tobytes() for y in (0, 16, 32) for x in (0, 32)]
    tiles = [zlib.compress(tile) for tile in tiles] if compression == 8 else tiles
    sizes = [len(tile) for tile in tiles]
    entries = {256: [50], 257: [41], 258: [8] * channels, 259: [compression], 262: [2], 277: [channels]}
    entries |= {322: [32], 323: [16], 324: (8 + np.cumsum([0, *sizes[:-1]])).tolist(), 325: sizes}
    data = tiff(
        {tag: (4 if tag in (324, 325) else 3, values) for tag, values in entries.items()}, b"".join(tiles)
    )
    np.testing.assert_array_equal(decode(data), pixels[:41, :50, 2::-1])


@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_deflate_with_a_predictor(channels, dtype, predictor):
    image = noise(70, 90, channels, dtype)
    options = [
        cv2.IMWRITE_TIFF_COMPRESSION,
        cv2.IMWRITE_TIFF_COMPRESSION_ADOBE_DEFLATE,
        cv2.IMWRITE_TIFF_PREDICTOR,
        predictor,
    ]
    data = cv2.imencode(".tiff", image, options)[1].tobytes()
    expected = image if dtype is np.uint8 else image >> 8
    # OpenCV, which reads grey of 16 bits, divides by 257.
    tolerance = 1 if (channels, dtype) == (1, np.uint16) else 0
    np.testing.assert_allclose(decode(data).astype(int), expected.repeat(3 // channels, 2), atol=tolerance)


@pytest.mark.parametrize(
    ("mode", "options"), [("RGB", {"big_tiff": True}), ("I;16B", {}), ("I;16B", {"big_tiff": True})]
)
def test_deflate_of_other_bytes_orders_and_widths(mode, options):
    grey = noise(70, 90, 1, np.uint8)
    if mode == "RGB":
        image = Image.fromarray(grey.repeat(3, 2))
    else:
        image = Image.frombytes(mode, (90, 70), (grey.astype(">u2") * 257).tobytes())
    file = io.BytesIO()
    image.save(file, "TIFF", compression="tiff_adobe_deflate", **options)
    np.testing.assert_array_equal(decode(file.getvalue()), grey.repeat(3, 2))


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_transparency_is_dropped(monkeypatch, compression, kind, planar):
    """Neither multiplied by nor divided by, in any order of the samples."""
    if planar == 1:
        monkeypatch.setattr(tiff_codec.Image, "open", None)  # There is nothing to undo.
    pixels = noise(70, 90, 4, np.uint8)
    planes = [pixels[..., plane] for plane in range(4)] if planar == 2 else [pixels]
    strips = [plane[top : top + 30].tobytes() for plane in planes for top in (0, 30, 60)]
    strips = [zlib.compress(strip) for strip in strips] if compression == 8 else strips
    sizes = [len(strip) for strip in strips]
    entries = {256: [90], 257: [70], 258: [8] * 4, 259: [compression], 262: [2], 277: [4], 278: [30]}
    entries |= {273: (8 + np.cumsum([0, *sizes[:-1]])).tolist(), 279: sizes, 284: [planar], 338: [kind]}
    data = tiff(
        {tag: (4 if tag in (273, 279) else 3, values) for tag, values in entries.items()}, b"".join(strips)
    )
    np.testing.assert_array_equal(decode(data), pixels[..., 2::-1])


def test_the_number_of_tiles_is_bounded(monkeypatch):
    count = 300 // 16 * 25
    entries = {256: (4, [400]), 257: (4, [288]), 258: (3, [8]), 262: (3, [1]), 277: (3, [1])}
    tiles = {322: (3, [16]), 323: (3, [16]), 324: (4, list(range(8, 8 + 256 * count, 256)))}
    data = tiff(entries | tiles | {325: (4, [256] * count)}, bytes(256 * count))
    assert decode(data).shape == (288, 400, 3)
    monkeypatch.setattr(tiff_codec, "MAX_PARTS", count - 1)
    with pytest.raises(ImageError, match=f"{count} strips or tiles, limit is {count - 1}"):
        decode(data)


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 64, 2**17])
@pytest.mark.parametrize(("kind", "maximum"), [(1, 1), (2, 9), (2, 65535), (3, 255), (3, 1023)])
def test_text_is_read_in_parts(monkeypatch, kind, maximum, at_once):
    samples = np.random.default_rng(0).integers(0, maximum + 1, (12, 10, 3 if kind == 3 else 1))
    data = text_pnm(kind, samples, None if kind == 1 else maximum)
    expected = decode(data)
    monkeypatch.setattr(pnm, "READ_AT_ONCE", at_once)
    np.testing.assert_array_equal(decode(data), expected)
    with pytest.raises(ImageError, match="damaged"):
        decode(data[: data.rindex(b" ")])


@pytest.mark.parametrize(
    "data",
    [encode(IMAGE, "TIFF", compression="tiff_adobe_deflate"), text_pnm(3, IMAGE, 255)],
    ids=["TIFF", "PPM"],
)
def test_memory(monkeypatch, data):
    monkeypatch.setattr(pnm, "READ_AT_ONCE", 2**12)
    decode(data)
    tracemalloc.start()
    try:
        decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Samples, picture, BGR.
    assert peak < 4 * IMAGE.nbytes
