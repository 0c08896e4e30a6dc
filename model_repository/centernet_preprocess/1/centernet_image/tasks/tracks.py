"""Tracks: which detection is which of the frame before (Zhou et al., "Tracking Objects as Points", 2020)."""

import math

import numpy as np

from centernet_image.tasks import Peaks

OVERLAP = 0.7
"""Of a box with one that is moved by a blob's radius, at least."""


class Tracker:
    """The identities of one stream, counted from 1. What is missed in a frame is new in the next."""

    def __init__(self) -> None:
        self._last = 0
        self._ids = np.zeros(0, np.int32)
        self._classes = np.zeros(0, np.int32)
        self._centers = np.zeros((0, 2))
        self._areas = np.zeros(0)

    def update(
        self, boxes: np.ndarray, classes: np.ndarray, centers: np.ndarray, displacements: np.ndarray
    ) -> np.ndarray:
        """Names the detections of the next frame: each, best first, after the nearest track that is free.

        A track is one detection's of the frame before, of the same class, and not farther from where this one
        was then than the square root of either's area.

        Args:
            boxes: [D, 4], in pixels of the picture, best first.
            classes: int [D].
            centers: [D, 2].
            displacements: [D, 2], from the center in this frame back to that in the one before.

        Returns:
            int32 [D], each of them once.
        """
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        free = np.ones(len(self._ids), bool)
        ids = np.zeros(len(boxes), np.int32)
        for index, place in enumerate(centers + displacements):
            distances = ((place - self._centers) ** 2).sum(axis=1)
            allowed = free & (self._classes == classes[index])
            allowed &= distances <= np.minimum(self._areas, areas[index])
            if allowed.any():
                nearest = np.where(allowed, distances, np.inf).argmin()
                free[nearest] = False
                ids[index] = self._ids[nearest]
        new = ids == 0
        ids[new] = self._last + 1 + np.arange(new.sum())
        self._last += int(new.sum())
        self._ids, self._classes, self._centers, self._areas = ids, classes, centers, areas
        return ids


def heat(boxes: np.ndarray, frame_size: tuple[int, int]) -> np.ndarray:
    """What the network is told of the frame before: a blob in the middle of each box that was tracked there.

    Args:
        boxes: [D, 4] in pixels of the frame.
        frame_size: Height and width.

    Returns:
        Float32 [*frame_size], 0 to 1.
    """
    height, width = frame_size
    found = np.zeros(frame_size, np.float32)
    clipped = boxes.clip(0, [width - 1, height - 1] * 2)
    for left, top, right, bottom in clipped[(clipped[:, 2:] > clipped[:, :2]).all(axis=1)].tolist():
        radius = _radius(math.ceil(bottom - top), math.ceil(right - left))
        raise_to_blob(found, int((left + right) / 2), int((top + bottom) / 2), radius)
    return found


def raise_to_blob(heat: np.ndarray, column: int, row: int, radius: int) -> None:
    """Raises `heat` [H, W] to a Gaussian of deviation (2 radius + 1) / 6 around a cell."""
    height, width = heat.shape
    rows = np.arange(max(row - radius, 0), min(row + radius + 1, height))[:, None]
    columns = np.arange(max(column - radius, 0), min(column + radius + 1, width))
    deviation = (2 * radius + 1) / 6
    blob = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * deviation**2))
    part = heat[rows[0, 0] : rows[-1, 0] + 1, columns[0] : columns[-1] + 1]
    np.maximum(part, blob, out=part, casting="same_kind")


def answers(peaks: Peaks) -> dict[str, np.ndarray]:
    """Centers and displacements [N, K, 2] in pixels of the pictures, for `Tracker`."""
    return {"centers": peaks.points("centers"), "displacements": peaks.vectors("displacements")}


def _radius(height: int, width: int) -> int:
    """By how much a box's corners may move: the original's formulas (Law and Deng, "CornerNet", 2018)."""
    around, area = height + width, height * width
    one = around + math.sqrt(around**2 - 4 * area * (1 - OVERLAP) / (1 + OVERLAP))
    inside = 2 * around + math.sqrt(4 * around**2 - 16 * (1 - OVERLAP) * area)
    twice = 2 * OVERLAP * around
    outside = math.sqrt(twice**2 + 16 * OVERLAP * (1 - OVERLAP) * area) - twice
    return int(min(one, inside, outside) / 2)
