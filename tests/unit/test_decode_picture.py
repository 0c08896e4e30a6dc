import io
import resource

import cv2
import numpy as np
import pytest
from centernet_image import ImageError, Limits, decode
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import bomb, encode, picture
from PIL import ExifTags, Image, ImageOps

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
    with pytest.raises(ImageError, match=r"400000000 pixels.* limit max_pixels is 50000000"):
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


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(deadline=None, max_examples=200)
@given(st.sampled_from(FORMATS), st.data())
def test_damage_is_an_image_error_or_a_picture(name, data):
    damaged = bytearray(encode(picture(20, 30), name))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(damaged), Limits(max_pixels=10_000))
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[0] * image.shape[1] <= 10_000
