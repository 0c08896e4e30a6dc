"""CenterNet's geometry: a picture is scaled to fit the frame and laid centre on centre.

Sizes are (height, width) in pixels, as arrays have them; boxes are x1 y1 x2 y2.
"""

import cv2
import numpy as np

OPENCV_IS_EXACT = int(cv2.__version__.split(".")[0]) >= 5
"""Earlier versions round positions to 1/32 pixel, which moves boxes by up to a pixel."""


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
    across, down = np.repeat(across, 3), down[:, None]
    # The bytes of each column's three channels, and which of them lie in the picture.
    left = (columns[:, None] * 3 + np.arange(3)).ravel()
    sides = [(side, (side < 0) | (side >= 3 * image.shape[1])) for side in (left, left + 3)]

    def across_rows(band: np.ndarray) -> np.ndarray:
        lines = np.take(image, band, axis=0, mode="clip").reshape(len(band), -1)
        lines[(band < 0) | (band >= len(image))] = 0
        ends = [np.take(lines, side, axis=1, mode="clip") for side, _ in sides]
        for end, (_, outside) in zip(ends, sides, strict=True):
            end[:, outside] = 0
        return _between(ends[0], ends[1], across)

    # Bands keep what is in between in the processor's cache.
    for start in range(0, len(out), 32):
        band = slice(start, start + 32)
        values = _between(across_rows(rows[band]), across_rows(rows[band] + 1), down[band])
        out[band] = np.rint(values, out=values).reshape(out[band].shape)
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
    shift = np.stack([shift_x, shift_y, shift_x, shift_y], axis=-1)
    return scale[..., None, None], shift[..., None, :]


def _scale_and_shift(
    image_sizes: np.ndarray, frame_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width = image_sizes[..., 0].astype(np.float64), image_sizes[..., 1].astype(np.float64)
    frame_height, frame_width = frame_size
    scale = np.minimum(frame_width / width, frame_height / height)
    return scale, (frame_width - scale * width) / 2, (frame_height - scale * height) / 2
