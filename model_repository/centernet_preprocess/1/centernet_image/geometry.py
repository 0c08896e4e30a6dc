"""CenterNet's geometry: a picture is scaled to fit the frame and laid centre on centre.

Sizes are (height, width) in pixels, as arrays have them; boxes are x1 y1 x2 y2.
"""

import cv2
import numpy as np

OPENCV_IS_EXACT = int(cv2.__version__.split(".")[0]) >= 5
"""Earlier versions round positions to 1/32 pixel, which moves boxes by up to a pixel."""

BAND_ROWS = 16
"""Of the frame, computed at a time: what is in between stays in the processor's cache."""


def frame_transform(image_size: tuple[int, int], frame_size: tuple[int, int]) -> np.ndarray:
    """The affine map from picture to frame coordinates, float64 [2, 3].

    It is that of CenterNet (Zhou et al., 2019), whose crop is the square around the picture.
    """
    scale, shift_x, shift_y = _scale_and_shift(np.array(image_size), frame_size)
    return np.array([[scale, 0, shift_x], [0, scale, shift_y]])


def warp(image: np.ndarray, frame_size: tuple[int, int], out: np.ndarray | None = None) -> np.ndarray:
    """Lays a picture into a frame: bilinear, black outside.

    Args:
        image: BGR, uint8 [height, width, 3].
        frame_size: Of the result.
        out: Where the result is written, uint8 [*frame_size, 3]; a new array by default.

    Returns:
        The frame, uint8 [*frame_size, 3].
    """
    height, width = frame_size
    matrix = frame_transform((image.shape[0], image.shape[1]), frame_size)
    if OPENCV_IS_EXACT:
        return cv2.warpAffine(image, matrix, (width, height), dst=out, flags=cv2.INTER_LINEAR)
    out = np.empty((*frame_size, 3), np.uint8) if out is None else out
    return _warp_exactly(image, matrix, out)


def _warp_exactly(image: np.ndarray, matrix: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`cv2.warpAffine` of OpenCV 5 for a matrix that only scales and shifts.

    One value in a million differs, by 1.
    """
    columns, across = _positions(matrix[0, 0], matrix[0, 2], out.shape[1], np.float64)
    rows, down = _positions(matrix[1, 1], matrix[1, 2], out.shape[0], np.float32)
    # Nothing is computed of the frame where no picture is.
    top, bottom = np.searchsorted(rows, (-1, image.shape[0]))
    left, right = np.searchsorted(columns, (-1, image.shape[1]))
    out[:top] = out[bottom:] = out[:, :left] = out[:, right:] = 0
    columns, across = columns[left:right], np.repeat(across[left:right], 3)

    # Each row of a band needs two of the picture's; each column of those needs two again.
    sources = np.empty((2 * BAND_ROWS, 2 * len(columns), 2), np.int16)
    sources[..., 0] = np.concatenate([columns, columns + 1])
    sources[..., 1] = np.arange(2 * BAND_ROWS)[:, None]
    for start in range(top, bottom, BAND_ROWS):
        stop = min(start + BAND_ROWS, bottom)
        count = stop - start
        lines = np.concatenate([rows[start:stop], rows[start:stop] + 1])
        taken = np.take(image, lines, axis=0, mode="clip")
        taken[(lines < 0) | (lines >= len(image))] = 0
        # With whole positions, nothing is rounded; outside the picture is black.
        ends = cv2.remap(taken, sources[: 2 * count], np.empty(0), cv2.INTER_NEAREST)
        ends = ends.reshape(2 * count, 2, -1)
        values = _between(ends[:, 0], ends[:, 1], across)
        values = _between(values[:count], values[count:], down[start:stop, None])
        out[start:stop, left:right] = np.rint(values, out=values).reshape(count, -1, 3)
    return out


def _positions(scale: float, shift: float, count: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Where the frame's first `count` pixels lie in the picture: whole pixels, and float32 fractions.

    OpenCV fuses multiplication and addition for columns, as with float64 for `dtype`, and not for rows.
    """
    step, first = np.array([1 / scale, -shift / scale], np.float32).astype(dtype)
    positions = (np.arange(count, dtype=dtype) * step + first).astype(np.float32)
    whole = np.floor(positions)
    return whole.astype(np.intp), positions - whole


def _between(first: np.ndarray, second: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    values = np.subtract(second, first, dtype=np.float32)
    values *= fraction
    values += first
    return values


def boxes_to_image(boxes: np.ndarray, image_sizes: np.ndarray, frame_size: tuple[int, int]) -> np.ndarray:
    """Takes boxes from frame to picture coordinates; they are not clipped.

    Args:
        boxes: [..., K, 4] in pixels of the frame.
        image_sizes: [..., 2], positive.
        frame_size: Of the frame.

    Returns:
        Float32 [..., K, 4] in pixels of the picture.
    """
    scale, shift = _for_boxes(image_sizes, frame_size)
    return ((boxes - shift) / scale).astype(np.float32)


def boxes_to_frame(boxes: np.ndarray, image_sizes: np.ndarray, frame_size: tuple[int, int]) -> np.ndarray:
    """The inverse of `boxes_to_image`."""
    scale, shift = _for_boxes(image_sizes, frame_size)
    return (boxes * scale + shift).astype(np.float32)


def _for_boxes(image_sizes: np.ndarray, frame_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    scale, shift_x, shift_y = _scale_and_shift(np.asarray(image_sizes), frame_size)
    shift = np.empty((*scale.shape, 4))
    shift[..., ::2], shift[..., 1::2] = shift_x[..., None], shift_y[..., None]
    return scale[..., None, None], shift[..., None, :]


def _scale_and_shift(
    image_sizes: np.ndarray, frame_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width = image_sizes[..., 0].astype(np.float64), image_sizes[..., 1].astype(np.float64)
    frame_height, frame_width = frame_size
    scale = np.minimum(frame_width / width, frame_height / height)
    return scale, (frame_width - scale * width) / 2, (frame_height - scale * height) / 2
