"""How a picture lies in the frame, by one of `contract.FITS`, and the way back.

Sizes are (height, width) in pixels, as arrays have them; boxes are x1 y1 x2 y2.
"""

import cv2
import numpy as np

from centernet_image.contract import FITS

PADDING = 128
"""Of a letterbox: the original's 127.5, as OpenCV rounds it."""


def frame_transform(
    image_size: tuple[int, int], frame_size: tuple[int, int], fit: str = "whole"
) -> np.ndarray:
    """The affine map from picture to frame coordinates, float64 [2, 3].

    Whole is that of CenterNet (Zhou et al., 2019), whose crop is the square around the picture; longest is
    that of CenterTrack (Zhou et al., 2020), width that of CenterNet's `ddd`; letterbox is that of FairMOT
    (Zhang et al., 2021): the picture's edges on its copy's.
    """
    (scale_x, scale_y), (shift_x, shift_y) = _scale_and_shift(np.array(image_size), frame_size, fit)
    return np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y]])


def warp(
    image: np.ndarray, frame_size: tuple[int, int], out: np.ndarray | None = None, fit: str = "whole"
) -> np.ndarray:
    """Lays a picture into a frame: bilinear, black outside; for a letterbox by area, grey outside.

    Args:
        image: BGR, uint8 [height, width, 3].
        frame_size: Of the result.
        out: Where the result is written, uint8 [*frame_size, 3]; a new array by default.
        fit: One of `contract.FITS`.

    Returns:
        The frame, uint8 [*frame_size, 3].
    """
    height, width = frame_size
    size = image.shape[0], image.shape[1]
    if fit != "letterbox":
        matrix = frame_transform(size, frame_size, fit)
        return cv2.warpAffine(image, matrix, (width, height), dst=out, flags=cv2.INTER_LINEAR)
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    out[:] = PADDING
    (inner_height, inner_width), (top, left) = (x.astype(int) for x in _letterbox(np.array(size), frame_size))
    inner = out[top : top + inner_height, left : left + inner_width]
    inner[:] = cv2.resize(image, (inner_width, inner_height), interpolation=cv2.INTER_AREA)
    return out


def points_to_image(
    points: np.ndarray, image_sizes: np.ndarray, frame_size: tuple[int, int], fit: str = "whole"
) -> np.ndarray:
    """Takes points from frame to picture coordinates.

    Args:
        points: [N, ..., 2], x and y in pixels of the frame.
        image_sizes: [N, 2], positive.
        frame_size: Of the frame.
        fit: One of `contract.FITS`.

    Returns:
        Float32 [N, ..., 2] in pixels of the picture.
    """
    scale, shift = _for(points, image_sizes, frame_size, fit)
    return ((points - shift) / scale).astype(np.float32)


def vectors_to_image(
    vectors: np.ndarray, image_sizes: np.ndarray, frame_size: tuple[int, int], fit: str = "whole"
) -> np.ndarray:
    """As `points_to_image` for what lies between two points."""
    scale, _ = _for(vectors, image_sizes, frame_size, fit)
    return (vectors / scale).astype(np.float32)


def boxes_to_image(
    boxes: np.ndarray, image_sizes: np.ndarray, frame_size: tuple[int, int], fit: str = "whole"
) -> np.ndarray:
    """Takes boxes from frame to picture coordinates; they are not clipped.

    Args:
        boxes: [N, K, 4] in pixels of the frame.
        image_sizes: [N, 2], positive.
        frame_size: Of the frame.
        fit: One of `contract.FITS`.

    Returns:
        Float32 [N, K, 4] in pixels of the picture.
    """
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return points_to_image(corners, image_sizes, frame_size, fit).reshape(boxes.shape)


def _for(
    points: np.ndarray, image_sizes: np.ndarray, frame_size: tuple[int, int], fit: str
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift as they are applied to points [N, ..., 2]."""
    sizes = np.asarray(image_sizes)
    shape = (*sizes.shape[:-1], *[1] * (points.ndim - sizes.ndim), 2)
    scale, shift = _scale_and_shift(sizes, frame_size, fit)
    return scale.reshape(shape), shift.reshape(shape)


def _scale_and_shift(
    image_sizes: np.ndarray, frame_size: tuple[int, int], fit: str
) -> tuple[np.ndarray, np.ndarray]:
    """Of x and y, [..., 2] each, for sizes [..., 2]."""
    sizes = image_sizes[..., ::-1].astype(np.float64)
    frame = np.array(frame_size[::-1], np.float64)
    if fit == "letterbox":
        inner, start = _letterbox(image_sizes, frame_size)
        return inner[..., ::-1] / sizes, start[..., ::-1]
    ratios = frame / sizes
    if fit == "whole":
        scale = ratios.min(axis=-1, keepdims=True)
    elif fit == "longest":
        scale = frame[0] / sizes.max(axis=-1, keepdims=True)
    elif fit == "width":
        scale = ratios[..., :1]
    else:
        raise ValueError(f"fit: found {fit!r}, expected one of {', '.join(FITS)}")
    scale = np.broadcast_to(scale, sizes.shape)
    return scale, (frame - scale * sizes) / 2


def _letterbox(image_sizes: np.ndarray, frame_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Size (height, width) and start (top, left) of the resized picture in the frame, whole numbers."""
    sizes, frame = image_sizes.astype(np.float64), np.array(frame_size, np.float64)
    inner = np.maximum(np.rint(sizes * (frame / sizes).min(axis=-1, keepdims=True)), 1)
    # The original's rounding, which gives the odd pixel to the right and the bottom.
    return inner, np.rint((frame - inner) / 2 - 0.1)
