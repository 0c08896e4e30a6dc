"""From the network's best peaks to what a client reads."""

import json
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
    fit: str = "whole",
) -> Detections:
    """Keeps the scores at or above a threshold and takes their boxes back to the pictures.

    Args:
        boxes: [N, K, 4] in pixels of the frame.
        scores: [N, K], best first.
        classes: Whole numbers [N, K], of any type.
        image_sizes: [N, 2], height and width of each picture.
        frame_size: Height and width of the frame.
        thresholds: One for all, or [N, 1].
        labels: object [C]: each class's name as bytes.
        fit: How the pictures lie in the frame, one of `contract.FITS`.

    Raises:
        ValueError: A class has no name, or there are not as many boxes, scores and classes.
    """
    if not boxes.shape[:2] == scores.shape == classes.shape:
        shapes = [list(array.shape) for array in (boxes, scores, classes)]
        raise ValueError(f"boxes, scores, classes: found shapes {shapes}, expected as many rows in each")
    lowest, highest = classes.min(initial=0), classes.max(initial=0)
    if not (lowest >= 0 and highest < len(labels)):  # a NaN is not
        found = highest if lowest >= 0 else lowest
        raise ValueError(f"classes: found {found}, expected 0 to {len(labels) - 1}, the classes with names")
    # A prefix even if the network did not sort, so that `num` always says which rows count.
    num = (scores >= thresholds).sum(axis=1, dtype=np.int32, keepdims=True)
    beyond = np.arange(scores.shape[1]) >= num
    classes = classes.astype(np.int32)
    boxes = boxes_to_image(boxes, image_sizes, frame_size, fit)
    found = Detections(num, boxes, scores.copy(), classes, labels[classes])
    for array, empty in zip(found[1:], (0, 0, 0, b""), strict=True):
        array[beyond] = empty
    return found


def score_threshold(value: object) -> float:
    """A threshold from what a request or a configuration says.

    Raises:
        ValueError: It is no number from 0 to 1.
    """
    try:
        threshold = float("nan" if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        threshold = float("nan")
    if not 0 <= threshold <= 1:
        raise ValueError(f"score_threshold: found {value!r}, expected a number from 0 to 1")
    return threshold


def requested_threshold(parameters: str, default: float) -> float:
    """The `score_threshold` among a request's parameters, or the default.

    Args:
        parameters: JSON, as Triton's Python backend has it.
        default: For requests that say nothing.

    Raises:
        ValueError: It is no number from 0 to 1.
    """
    if "score_threshold" not in parameters:  # Most have none: that is quicker than to parse them.
        return default
    return score_threshold(json.loads(parameters).get("score_threshold", default))
