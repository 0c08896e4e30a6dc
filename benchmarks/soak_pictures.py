"""Pictures for a soak, and how the answers of a quiet server are compared with those of a busy one."""

from dataclasses import dataclass

import cv2
import numpy as np

from clients.detections import Detections

SIZES = {(64, 48): 4, (320, 240): 6, (640, 480): 6, (1280, 960): 4, (1920, 1080): 2, (4000, 3000): 1}
"""Width and height, pixels: how many pictures of each."""

BOX_PX, SCORE = 1.0, 0.01
"""Batches of other sizes are computed by other kernels; the answer to another picture differs by far more."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture, the threshold to ask with, and the quiet server's answer; None: it is damaged."""

    data: bytes
    threshold: float = 0.5
    expected: np.ndarray | None = None


def draw(sizes: dict[tuple[int, int], int]) -> list[bytes]:
    """Encoded pictures of a few discs each, somewhere on an uneven ground."""
    random = np.random.default_rng(0)
    pictures: list[bytes] = []
    for size in (size for size, count in sizes.items() for _ in range(count)):
        image = cv2.resize(random.integers(0, 90, (6, 8, 3), np.uint8), (640, 480))
        for x, y, radius, grey in random.integers((40, 40, 15, 120), (600, 440, 40, 256), (12, 4)).tolist():
            cv2.circle(image, (x, y), radius, (grey, grey, grey), cv2.FILLED, cv2.LINE_AA)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        image = cv2.add(image, random.integers(0, 12, image.shape, np.uint8))
        end = (".jpg", ".png", ".webp")[len(pictures) % 3] if size[0] < 1000 else ".jpg"
        pictures.append(cv2.imencode(end, image)[1].tobytes())
    return pictures


def rows(found: Detections) -> np.ndarray:
    """Rows of x1 y1 x2 y2, score, class."""
    return np.column_stack([found.xyxy, found.scores, found.class_ids])


def threshold_between(scores: np.ndarray) -> float:
    """The middle of the widest gap among the best 50: no rounding puts a detection on its other side."""
    best = np.sort(scores)[::-1][:51]
    index = int(np.argmax(best[:-1] - best[1:]))
    return float(best[index : index + 2].mean())


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether each has the other's rows; in any order, which near-equal scores may change."""
    if len(found) != len(expected):
        return False
    near = (np.abs(found[:, None] - expected) <= [BOX_PX] * 4 + [SCORE, 0]).all(-1)
    return bool(near.any(0).all() and near.any(1).all())
