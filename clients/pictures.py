"""What a program may hand to the client as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from clients.errors import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "bytes | bytearray | memoryview | np.ndarray | Image"
"""An encoded picture (JPEG, PNG, WebP, …), or pixels: an array or a Pillow image."""

MAX_SIDE = 32766
"""Pixels; OpenCV's warp addresses its source with 16 bits."""

EXPECTED = (
    "expected an encoded picture as bytes, pixels as uint8 [height, width, 3] in BGR order or "
    "[height, width] in grey, or a Pillow image"
)
PILLOW_MODES = ("1", "CMYK", "HSV", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
"""Of 8 bits or fewer; of others nobody says which value is white."""


def normalized(picture: object) -> bytes | np.ndarray:
    """An encoded picture as bytes, or pixels as uint8 [height, width, 3] BGR.

    Grey pixels become three equal channels. Pillow images are turned upright as their EXIF data say, and
    their transparency is dropped, as the server does with encoded pictures.

    Raises:
        PictureError: It is neither; the text says what was found and what was expected.
    """
    if isinstance(picture, bytes | bytearray) or (isinstance(picture, memoryview) and picture.ndim == 1):
        return bytes(picture)
    if isinstance(picture, np.ndarray):
        return _pixels(picture)
    # No import of Pillow for those who do not use it.
    if type(picture).__module__.startswith("PIL."):
        return _of_pillow(picture)
    advice = ": read the file first, as with pathlib.Path(name).read_bytes()"
    named = isinstance(picture, str) or hasattr(picture, "__fspath__")
    raise PictureError(f"found {_article(type(picture).__name__)}, {EXPECTED}{advice if named else ''}")


def _pixels(array: np.ndarray) -> np.ndarray:
    found = f"found an array of {array.dtype} {list(array.shape)}"
    if array.dtype == np.uint8 and (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise PictureError(f"{found}, {EXPECTED}: is it an encoded picture, take picture.tobytes()")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] == 4:
        raise PictureError(
            f"{found}, {EXPECTED}: is it BGRA, leave alpha out, picture[..., :3]; is it RGBA, take "
            "picture[..., 2::-1]"
        )
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise PictureError(f"{found}, {EXPECTED}")
    if not 0 < min(array.shape[:2]) <= max(array.shape[:2]) <= MAX_SIDE:
        raise PictureError(f"{found}, expected sides of 1 to {MAX_SIDE} pixels")
    grey = array.ndim == 2
    return np.ascontiguousarray(np.broadcast_to(array[..., None], (*array.shape, 3)) if grey else array)


def _of_pillow(image: object) -> np.ndarray:
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise PictureError(f"found {_article(type(image).__name__)}, {EXPECTED}")
    if image.mode not in PILLOW_MODES:
        raise PictureError(f"found a Pillow image of mode {image.mode}, expected 8 bits a channel, like RGB")
    try:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reads a file's pixels only now.
        raise PictureError(f"the Pillow image cannot be read: {error}") from error
    return _pixels(np.asarray(upright)[..., ::-1])


def _article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
