"""Holds detections against the raw heads that they should have come from.

Two runs of one network never agree on the order of peaks that are as good as equal, nor on which of them is
the last of the K best. What a detection says of its own cell does not depend on that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from centernet_image.contract import BOXES, CLASSES, HEADS, SCORES, STRIDE

OUTPUTS = (BOXES.name, SCORES.name, CLASSES.name)
HEAT, OFFSET, SIZE = HEADS

ENOUGH = 8
"""Detections of a class that say something of it: a right plan does not miss half of so many."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well detections are explained.

    Attributes:
        score: largest difference of an explained detection's score.
        box_px: largest difference of a side of its box, pixels of the frame.
        unmatched: part without an explanation, or missing; of the worst picture.
        of_a_class: the same of the worst class that has `ENOUGH`, all pictures together: one of 80 is lost
            among the others.
        compared: detections looked at, and those that are missing.
    """

    score: float
    box_px: float
    unmatched: float
    of_a_class: float
    compared: int


def explain(
    found: Mapping[str, np.ndarray], cells: Mapping[str, np.ndarray], *, score: float, box_px: float
) -> tuple[Agreement, list]:
    """Looks for the cell of each detection, and for the detection of each peak.

    A cell explains one detection of its class at most: it is a peak, give or take `score`, and its score and
    box are the detection's within `score` and `box_px`. A peak that no rounding puts behind the last
    detection must have one, up to two cells away: a neighbour as high may have taken its place. It must be
    the highest that far, else the neighbour might stand beside a higher cell and be no peak itself.
    Detections below `score` are left alone, but for the first: there is always something to look at.

    Args:
        found: `boxes` [N, K, 4], `scores` [N, K] and `classes` [N, K], best first.
        cells: the raw `hm` [N, C, H, W], and `boxes` of its cells, [N, C, H, W, 4] of `boxes_of` or
            [N, C·H·W, 4] of `candidates.Candidates`.
        score: largest difference of a score.
        box_px: largest difference of a side of a box, pixels of the frame.

    Returns:
        The agreement, and (picture, cell, detection) of each pair.
    """
    pairs = []
    worst_score = worst_box = unmatched = 0.0
    looked_at: list[tuple[int, bool]] = []  # class, and whether it is explained
    # A graph in FP16 may have its heads so, for which OpenCV has no dilation.
    arrays = (cells[HEAT], cells[BOXES.name], *(found[name] for name in OUTPUTS))
    arrays = tuple(a.astype(np.float32) if a.dtype == np.float16 else a for a in arrays)
    for picture, (hm, every, boxes, scores, labels) in enumerate(zip(*arrays, strict=True)):
        heat = sigmoid(hm)
        free = are_peaks(heat, score)
        taken = np.zeros(heat.shape, np.uint8)
        of_class = every.reshape(*heat.shape, 4)
        here = []
        # A NaN compares false: written so that it is looked at, and never explained.
        for row in np.flatnonzero(~(scores <= score) | (np.arange(len(scores)) == 0)):
            label = int(labels[row])
            here.append((label, False))
            if not 0 <= label < len(heat):
                continue
            score_gap = np.abs(heat[label] - scores[row])
            box_gap = np.abs(of_class[label] - boxes[row]).max(-1)
            misfit = np.maximum(score_gap / score, box_gap / box_px)
            misfit = np.where(free[label] & (misfit <= 1), misfit, np.inf)
            cell = np.unravel_index(np.argmin(misfit), misfit.shape)
            if misfit[cell] <= 1:
                here[-1] = (label, True)
                free[label][cell], taken[label][cell] = False, 1
                pairs.append((picture, int(np.ravel_multi_index((label, *cell), heat.shape)), int(row)))
                worst_score = max(worst_score, float(score_gap[cell]))
                worst_box = max(worst_box, float(box_gap[cell]))
        # Of the logits: where the sigmoid saturates every cell is as high as the next.
        is_due = (hm == widen(hm, cells=2)) & (heat > max(scores[-1], score) + score)
        missing = is_due & (widen(taken, cells=2) == 0)
        here += [(int(label), False) for label in np.nonzero(missing)[0]]
        unmatched = max(unmatched, 1 - sum(explained for _, explained in here) / len(here))
        looked_at += here
    agreement = Agreement(
        score=worst_score,
        box_px=worst_box,
        unmatched=unmatched,
        of_a_class=of_a_class(looked_at),
        compared=len(looked_at),
    )
    return agreement, pairs


def of_a_class(looked_at: Iterable[tuple[int, bool]]) -> float:
    """The unmatched part of the worst class with `ENOUGH`.

    Args:
        looked_at: of each detection its class, and whether it has a counterpart.
    """
    matched: dict[int, list[bool]] = {}
    for label, has_one in looked_at:
        matched.setdefault(label, []).append(has_one)
    return max((1 - sum(each) / len(each) for each in matched.values() if len(each) >= ENOUGH), default=0.0)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Scores of logits, without overflow."""
    return (1 + np.tanh(logits / 2)) / 2


def are_peaks(heat: np.ndarray, score: float) -> np.ndarray:
    """The cells of [C, H, W] that no neighbour exceeds by more than `score`."""
    return heat >= widen(heat) - score


def widen(planes: np.ndarray, *, cells: int = 1) -> np.ndarray:
    """The largest value of each cell and those up to `cells` away, plane by plane."""
    square = np.ones((2 * cells + 1, 2 * cells + 1), np.uint8)
    return np.stack([cv2.dilate(plane, square) for plane in planes])


def boxes_of(heads: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `explain` wants of a detector: all its cells at once.

    `candidates.Candidates` would do, but decodes K cells at a time: minutes for 80 classes that score alike.

    Args:
        heads: raw `hm`, `wh` and, if there is one, `reg`, as `export.tasks.detect` reads them.
    """
    hm = heads[HEAT]
    pictures, classes, height, width = hm.shape
    places = np.stack(np.meshgrid(np.arange(width), np.arange(height)))
    centre = (places + heads.get(OFFSET, np.full((pictures, 2, 1, 1), 0.5, np.float32)))[:, None]
    half = heads[SIZE].reshape(pictures, -1, 2, height, width) / 2  # of each class, or of all
    boxes = STRIDE * np.moveaxis(np.concatenate([centre - half, centre + half], 2), 2, -1)
    # A view: where all classes share one box it is not copied for each.
    return {HEAT: hm, BOXES.name: np.broadcast_to(boxes, (pictures, classes, height, width, 4))}
