"""What the client takes for a picture, and what it refuses."""

import io
from pathlib import Path

import numpy as np
import pytest
from centernet_image.decode import decode
from pictures import encode, picture
from PIL import Image

from clients import CenterNetClient, CenterNetError, PictureError
from clients.pictures import PILLOW_MODES, normalized

PIXELS = picture(20, 30)
GREY = PIXELS[..., 1]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_like(kind: type) -> None:
    encoded = encode(PIXELS)
    found = normalized(kind(encoded))
    assert type(found) is bytes
    assert found == encoded


@pytest.mark.parametrize(
    "given",
    [PIXELS, PIXELS[::-1, ::-1], np.asfortranarray(PIXELS), np.repeat(PIXELS, 2, axis=1)[:, ::2]],
    ids=["plain", "turned", "columns first", "every other"],
)
def test_pixels_of_any_layout(given: np.ndarray) -> None:
    found = normalized(given)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, given)
    assert found.flags.c_contiguous


@pytest.mark.parametrize("given", [GREY, GREY[..., None], Image.fromarray(GREY)], ids=["HW", "HW1", "Pillow"])
def test_grey(given: object) -> None:
    np.testing.assert_array_equal(normalized(given), np.stack([GREY] * 3, axis=-1))


def test_pillow_images_are_what_the_server_makes_of_the_same_file() -> None:
    rgb = Image.fromarray(PIXELS[..., ::-1].copy())
    transparent = rgb.convert("RGBA")
    transparent.putalpha(40)
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = io.BytesIO()
    rgb.transpose(Image.Transpose.ROTATE_90).save(rotated, "PNG", exif=exif)
    for image in (rgb, transparent, Image.open(rotated)):
        np.testing.assert_array_equal(normalized(image), PIXELS)
    palette = io.BytesIO()
    rgb.quantize(16).save(palette, "PNG")
    np.testing.assert_array_equal(normalized(Image.open(palette)), decode(palette.getvalue()))


@pytest.mark.parametrize("mode", PILLOW_MODES)
def test_every_pillow_mode_of_eight_bits(mode: str) -> None:
    found = normalized(Image.new(mode, (9, 8)))
    assert isinstance(found, np.ndarray)
    assert found.shape == (8, 9, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (PIXELS.astype(np.float32) / 255, r"array of float32 \[20, 30, 3\], expected"),
        (PIXELS.astype(np.uint16), "array of uint16"),
        (PIXELS > 9, "array of bool"),
        (np.zeros((20, 30, 4), np.uint8), r"\[20, 30, 4\].*BGRA.*RGBA"),
        (np.zeros((20, 30, 2), np.uint8), r"\[20, 30, 2\]"),
        (PIXELS[None], r"\[1, 20, 30, 3\]"),
        (PIXELS.transpose(2, 0, 1), r"\[3, 20, 30\]"),
        (np.zeros((0, 30, 3), np.uint8), "sides of 1 to"),
        (np.zeros((2, 40000, 3), np.uint8), "sides of 1 to"),
        (np.frombuffer(encode(PIXELS), np.uint8), "tobytes"),
        (np.frombuffer(encode(PIXELS), np.uint8)[:, None], "tobytes"),
        (memoryview(PIXELS), "found a memoryview"),
        ("picture.png", r"found a str.*read_bytes"),
        (Path("picture.png"), "found a PosixPath.*read_bytes"),
        (None, "found a NoneType"),
        (PIXELS.tolist(), "found a list"),
        (io.BytesIO(), "found a BytesIO"),
        (Image.new("I;16", (9, 8)), "mode I;16"),
        (Image.new("F", (9, 8)), "mode F"),
        (Image.open(io.BytesIO(encode(PIXELS)[:300])), "cannot be read"),
    ],
)
def test_anything_else_is_one_clear_error(given: object, message: str) -> None:
    with pytest.raises(PictureError, match=message) as caught:
        normalized(given)
    assert isinstance(caught.value, CenterNetError)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_the_client_refuses_before_it_asks_anybody() -> None:
    with CenterNetClient("localhost:1") as client:
        with pytest.raises(PictureError, match="float64"):
            client.detect(np.zeros((20, 30, 3)))
        # Among many, it is that picture's answer.
        (answer,) = client.detect_many(["picture.png"])
        assert isinstance(answer.error, PictureError)
