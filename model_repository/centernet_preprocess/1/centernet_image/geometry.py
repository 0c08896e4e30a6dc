"""CenterNet's geometry: a picture is scaled to fit the frame and laid centre on centre.

Sizes are (height, width) in pixels, as arrays have them; boxes are x1 y1 x2 y2.
"""

import cv2
import numpy as np


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
    return cv2.warpAffine(image, matrix, (width, height), dst=out, flags=cv2.INTER_LINEAR)


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
