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
        labels: object [C]: each class's name as bytes.

    Raises:
        IndexError: A class has no name.
    """
    count, top_k = scores.shape
    found = Detections(
        np.zeros((count, 1), np.int32),
        np.zeros((count, top_k, 4), np.float32),
        np.zeros((count, top_k), np.float32),
        np.zeros((count, top_k), np.int32),
        np.empty((count, top_k), object),
    )
    found.labels.fill(b"")
    # Picture by picture: mostly there is one, and each call of NumPy costs more than its work.
    for row, kept in enumerate(scores >= thresholds):
        # A prefix even if the network did not sort, so that `num` always says which rows count.
        num = np.count_nonzero(kept)
        found.num[row] = num
        found.boxes[row, :num] = boxes_to_image(boxes[row, :num], image_sizes[row], frame_size)
        found.scores[row, :num] = scores[row, :num]
        found.classes[row, :num] = classes[row, :num]
        found.labels[row, :num] = labels[classes[row, :num]]
    return found
