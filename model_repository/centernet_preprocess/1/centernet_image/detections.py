"""From the network's best peaks to what a client reads."""

from typing import NamedTuple

import numpy as np

from centernet_image.geometry import boxes_to_image


class Detections(NamedTuple):
    """Detections of N pictures, best first; rows beyond `num` are zero, their labels empty.

    Attributes:
        num: int32 [N, 1].
        boxes: float32 [N, K, 4], x1 y1 x2 y2 in pixels of the picture.
        scores: float32 [N, K].
        classes: int32 [N, K].
        labels: object (bytes, UTF-8) [N, K].
    """

    num: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    labels: np.ndarray


def select(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    *,
    image_sizes: np.ndarray,
    frame_size: tuple[int, int],
    thresholds: np.ndarray | float,
    labels: np.ndarray,
) -> Detections:
    """Keeps the scores at or above a threshold and takes their boxes back to the pictures.

    Args:
        boxes: [N, K, 4] in pixels of the frame.
        scores: [N, K], best first.
        classes: int [N, K].
        image_sizes: [N, 2], height and width of each picture.
        frame_size: Height and width of the frame.
        thresholds: One for all, or [N, 1].
        labels: object [C + 1]: each class's name as bytes and, last, an empty one.

    Raises:
        IndexError: A class has no name.
    """
    keep = scores >= thresholds
    num = keep.sum(axis=1, dtype=np.int32, keepdims=True)
    # A prefix even if the network did not sort, so that `num` always says which rows count.
    keep = np.arange(scores.shape[1]) < num
    return Detections(
        num,
        np.where(keep[..., None], boxes_to_image(boxes, image_sizes, frame_size), np.float32(0)),
        np.where(keep, scores, np.float32(0)),
        np.where(keep, classes, np.int32(0)),
        labels[np.where(keep, classes, -1)],
    )
