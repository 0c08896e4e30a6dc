"""What the warp kernel is told of a picture."""

from functools import lru_cache

import numpy as np
from centernet_image.geometry import frame_transform

# As struct Picture in warp.cu.
PICTURE = np.dtype(
    [
        ("pixels", np.uint64),
        ("pitch", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("step", np.float32),
        ("first_column", np.float32),
        ("first_row", np.float32),
        ("frame", np.int32),
    ]
)


def describe(
    size: tuple[int, int],
    frame_size: tuple[int, int],
    fit: str = "whole",
    *,
    pixels: int,
    pitch: int,
    frame: int,
) -> tuple[float, ...]:
    """One element of an array of `PICTURE`.

    Args:
        size: The picture's height and width.
        frame_size: Of the frames.
        fit: Not "letterbox": the kernel has one scale for both directions.
        pixels: Address of its first pixel, RGB.
        pitch: Bytes from one of its rows to the next.
        frame: Which of the batch's frames it becomes.
    """
    return (pixels, pitch, *size, *_place(size, frame_size, fit), frame)


@lru_cache(maxsize=1024)
def _place(size: tuple[int, int], frame_size: tuple[int, int], fit: str) -> tuple[float, float, float]:
    matrix = frame_transform(size, frame_size, fit)
    scale = float(matrix[0, 0])
    return 1 / scale, -float(matrix[0, 2]) / scale, -float(matrix[1, 2]) / scale
