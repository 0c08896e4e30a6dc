"""What the warp kernel is told of a picture."""

import numpy as np
from centernet_image import frame_transform

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
    size: tuple[int, int], frame_size: tuple[int, int], *, pixels: int, pitch: int, frame: int
) -> np.ndarray:
    """One element of `PICTURE`.

    Args:
        size: The picture's height and width.
        frame_size: Of the frames.
        pixels: Address of its first pixel, RGB.
        pitch: Bytes from one of its rows to the next.
        frame: Which of the batch's frames it becomes.
    """
    matrix = frame_transform(size, frame_size)
    scale, (shift_x, shift_y) = matrix[0, 0], matrix[:, 2]
    place = (1 / scale, -shift_x / scale, -shift_y / scale)
    return np.array((pixels, pitch, *size, *place, frame), PICTURE)
