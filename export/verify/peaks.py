"""Holds detections against the raw heads that they should have come from.

Two runs of one network never agree on the order of peaks that are as good as equal, nor on which of them is
the last of the K best. What a detection says of its own cell does not depend on that.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from centernet_image.contract import BOXES, CLASSES, HEADS, SCORES, STRIDE

OUTPUTS = (BOXES.name, SCORES.name, CLASSES.name)
HEAT, OFFSET, SIZE = HEADS


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well detections are explained.

    Attributes:
        score: largest difference of an explained detection's score.
        box_px: largest difference of a side of its box, pixels of the frame.
        unmatched: part without an explanation, or missing; of the worst picture.
        compared: detections looked at, and those that are missing.
    """

    score: float
    box_px: float
    unmatched: float
    compared: int


def compare(
    found: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray], *, score: float, box_px: float
) -> Agreement:
    """Looks for the cell of each detection, and for the detection of each peak.

    A cell explains one detection of its class at most: it is a peak, give or take `score`, and its score and
    box are the detection's within `score` and `box_px`. A peak that no rounding puts behind the last
    detection must have one, up to two cells away: a neighbour as high may have taken its place. It must be
    the highest that far, else the neighbour might stand beside a higher cell and be no peak itself.
    Detections below `score` are left alone, but for the first: there is always something to look at.

    Args:
        found: `boxes` [N, K, 4], `scores` [N, K] and `classes` [N, K], best first.
        heads: raw `hm`, `wh` and, if there is one, `reg`, as `export.detector.Decode` reads them.
        score: largest difference of a score.
        box_px: largest difference of a side of a box, pixels of the frame.
    """
    worst_score = worst_box = unmatched = 0.0
    compared = 0
    offsets = heads.get(OFFSET, np.full((len(heads[HEAT]), 2, 1, 1), 0.5, np.float32))
    detections = [found[name] for name in OUTPUTS]
    for hm, wh, reg, boxes, scores, labels in zip(
        heads[HEAT], heads[SIZE], offsets, *detections, strict=True
    ):
        every = _all_boxes(hm, wh, reg)
        heat = (1 + np.tanh(hm / 2)) / 2  # the sigmoid, without overflow
        free = heat >= widen(heat) - score
        taken = np.zeros(heat.shape, np.uint8)
        # A NaN compares false: written so that it is looked at, and never explained.
        rows = np.flatnonzero(~(scores <= score) | (np.arange(len(scores)) == 0))
        explained = 0
        for row in rows:
            label = int(labels[row])
            if not 0 <= label < len(heat):
                continue
            score_gap = np.abs(heat[label] - scores[row])
            box_gap = np.abs(every[label % len(every)] - boxes[row]).max(-1)
            misfit = np.where(free[label], np.maximum(score_gap / score, box_gap / box_px), np.inf)
            cell = np.unravel_index(np.argmin(misfit), misfit.shape)
            if misfit[cell] <= 1:
                explained += 1
                free[label][cell], taken[label][cell] = False, 1
                worst_score = max(worst_score, float(score_gap[cell]))
                worst_box = max(worst_box, float(box_gap[cell]))
        # Of the logits: where the sigmoid saturates every cell is as high as the next.
        is_due = (hm == widen(hm, cells=2)) & (heat > max(scores[-1], score) + score)
        missing = int((is_due & (widen(taken, cells=2) == 0)).sum())
        compared += len(rows) + missing
        unmatched = max(unmatched, 1 - explained / (len(rows) + missing))
    return Agreement(score=worst_score, box_px=worst_box, unmatched=unmatched, compared=compared)


def widen(planes: np.ndarray, *, cells: int = 1) -> np.ndarray:
    """The largest value of each cell and those up to `cells` away, plane by plane."""
    square = np.ones((2 * cells + 1, 2 * cells + 1), np.uint8)
    return np.stack([cv2.dilate(plane, square) for plane in planes])


def _all_boxes(hm: np.ndarray, wh: np.ndarray, reg: np.ndarray) -> np.ndarray:
    """The box of each cell, [C, H, W, 4] if `wh` knows classes, else [1, H, W, 4]."""
    height, width = hm.shape[1:]
    centre = np.stack(np.meshgrid(np.arange(width), np.arange(height))) + reg
    size = wh.reshape(-1, 2, height, width)
    return STRIDE * np.moveaxis(np.concatenate([centre - size / 2, centre + size / 2], 1), 1, -1)
