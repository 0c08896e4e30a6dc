import io
import resource
import struct

import cv2
import numpy as np
import pytest
from centernet_image.codecs.common import ImageError
from centernet_image.decode import Limits, decode
from pictures import bomb, encode, picture
from PIL import ExifTags, Image, ImageOps
from seed_pictures import HEIGHT, WIDTH, seeds, text_pnm

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
LOSSY = ("JPEG", "WEBP")
MODES = {
    "JPEG": ("L", "CMYK"),
    "PNG": ("L", "LA", "RGBA", "P", "1"),
    "TIFF": ("L", "LA", "RGBA", "P", "1", "CMYK"),
    "WEBP": ("RGBA",),
}


def assert_alike(found, expected, *, exact):
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected)
    assert difference.mean() <= (0 if exact else 2)
    assert difference.max() <= (0 if exact else 40)


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    expected = picture(60, 90)
    assert_alike(decode(encode(expected, name)), expected, exact=name not in LOSSY)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(name, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(picture(60, 90), name, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[..., ::-1]
    np.testing.assert_allclose(decode(data), expected, atol=2)


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name in MODES for mode in MODES[name]])
def test_modes(name, mode):
    image = Image.fromarray(picture(60, 90)[..., ::-1]).convert(mode)
    stream = io.BytesIO()
    image.save(stream, name, quality=95)
    assert_alike(decode(stream.getvalue()), np.asarray(image.convert("RGB"))[..., ::-1], exact=False)


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_sixteen_bit_grey(extension):
    expected = picture(60, 90)[..., :1]
    data = cv2.imencode(extension, expected.astype(np.uint16) * 257)[1]
    np.testing.assert_array_equal(decode(data.tobytes()), expected.repeat(3, axis=2))


def test_sixteen_bit_colour_and_transparency():
    expected = picture(60, 90)
    alpha = np.random.default_rng(0).integers(0, 2, (60, 90, 1), np.uint16) * 65535
    data = cv2.imencode(".png", np.concatenate([expected.astype(np.uint16) * 257, alpha], axis=2))[1]
    np.testing.assert_array_equal(decode(data.tobytes()), expected)


def test_empty():
    with pytest.raises(ImageError, match="found 0 bytes"):
        decode(b"")


def test_text():
    with pytest.raises(ImageError, match="found 12 bytes beginning b'no pictu', expected one of JPEG"):
        decode(b"no picture..")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("percent", [1, 10, 50, 90])
def test_truncated(name, percent):
    data = encode(picture(200, 240), name)
    with pytest.raises(ImageError, match="found"):
        decode(data[: len(data) * percent // 100])


def test_bomb_is_refused_from_its_header():
    data = bomb(20000, 20000)
    assert len(data) < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=r"400000000, limit max_pixels is 67108864"):
        decode(data)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 100_000


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (1, 1, "1x1 pixels, limit min_side is 8"),
        (1, 5000, "5000x1 pixels, limit min_side is 8"),
        (10, 40000, "40000x10 pixels, a side may have at most 32766"),
    ],
)
def test_shape(height, width, message):
    with pytest.raises(ImageError, match=message):
        decode(encode(np.zeros((height, width, 3), np.uint8), "PNG"))


def test_limits():
    data = encode(picture(20, 30), "PNG")
    assert decode(data, Limits(max_bytes=len(data), max_pixels=600, min_side=20)).shape == (20, 30, 3)
    for limits, name in (
        (Limits(max_bytes=len(data) - 1), "max_bytes"),
        (Limits(max_pixels=599), "max_pixels"),
        (Limits(min_side=21), "min_side"),
    ):
        with pytest.raises(ImageError, match=rf"limit {name} is {getattr(limits, name)}"):
            decode(data, limits)


@pytest.mark.parametrize("name", seeds())
def test_every_kind_of_picture_is_decoded(name):
    turned = name in ("JPEG upright", "PNG upright", "WEBP alpha")
    assert decode(seeds()[name]).shape == ((WIDTH, HEIGHT, 3) if turned else (HEIGHT, WIDTH, 3))


@pytest.mark.parametrize(
    "name",
    ["PNG interlaced", "PNG animated", "TIFF tiles", "PPM text", "base64 URI"],
)
def test_lossless_kinds_are_exact(name):
    np.testing.assert_array_equal(decode(seeds()[name]), picture(HEIGHT, WIDTH))


@pytest.mark.parametrize("size", [(8160, 6144), (9504, 6336), (9248, 6944)])
def test_pictures_of_phones_pass(size):
    width, height = size
    start = bomb(height, width)
    with pytest.raises(ImageError, match="damaged or truncated"):
        decode(start[: len(start) // 2])


@pytest.mark.parametrize("maximum", [1, 7, 100, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_samples_are_scaled_by_their_maximum(kind, maximum):
    samples = np.random.default_rng(0).integers(0, maximum + 1, (20, 30, 3 if kind in (3, 6) else 1))
    header = f"P{kind} 30 20 {maximum}\n".encode()
    data = (
        header + samples.astype(np.uint8 if maximum < 256 else ">u2").tobytes()
        if kind > 3
        else text_pnm(kind, samples, maximum)
    )
    expected = samples >> 8 if maximum == 65535 else np.floor(samples * 255 / maximum + 0.5)
    np.testing.assert_array_equal(decode(data)[..., ::-1], np.broadcast_to(expected, (20, 30, 3)))


def test_samples_above_the_maximum_are_damage():
    for data in (
        b"P5 8 8 100\n" + bytes([101]) * 64,
        b"P2 8 8 100\n" + b"101 " * 64,
        b"P2 8 8 9\n" + b"1234567 " * 64,
    ):
        with pytest.raises(ImageError, match="a sample is above the maximum"):
            decode(data)


@pytest.mark.parametrize("text", [b"1 0 " * 32, b"10" * 32, b"1# comment 0\n0" * 32 + b"\n"])
def test_bitmaps_as_text_may_have_no_spaces(text):
    expected = np.tile([0, 255], (8, 4))
    np.testing.assert_array_equal(decode(b"P1 8 8\n" + text)[..., 0], expected)


def test_a_picture_of_an_animation_that_is_smaller_than_its_canvas():
    whole = decode(seeds()["WEBP animated"])
    small = bytearray(seeds()["WEBP animated"])
    place = small.index(b"VP8X") + 8
    small[place + 4 : place + 10] = struct.pack("<I", WIDTH + 9)[:3] + struct.pack("<I", HEIGHT + 4)[:3]
    frame = small.index(b"ANMF") + 8
    small[frame : frame + 6] = struct.pack("<I", 2)[:3] + struct.pack("<I", 1)[:3]
    expected = np.pad(whole, ((2, 3), (4, 6), (0, 0)))
    np.testing.assert_array_equal(decode(bytes(small)), expected)


def test_harmless_oddities_of_cameras_are_no_damage():
    data = encode(picture(60, 90), "JPEG")
    expected = decode(data)
    scan = data.index(b"\xff\xda")
    end = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4])
    for odd in (
        data + b"a second picture for wide screens",
        data[:-2] + bytes(100) + data[-2:],
        data[: end - 3] + bytes(3) + data[end:],
        data[:2] + b"\xff\xe1\0\x10Exif\0\0nonsense" + data[2:],
    ):
        np.testing.assert_array_equal(decode(odd), expected)
