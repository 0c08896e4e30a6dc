"""Detections of two runs held against each other, row by row, whatever their order."""

from collections.abc import Callable, Mapping

import numpy as np
from centernet_image import contract, tasks

from export.verify import peaks

Outputs = Mapping[str, np.ndarray]

FURTHER = tuple(dict.fromkeys(tensor.name for task in contract.TASKS.values() for tensor in task.peaks))
"""Outputs of a network beyond `peaks.OUTPUTS`, one row for each detection."""

PEAKS = contract.PEAKS.name

REACH_PX = 2 * contract.STRIDE

_PIXELS = ("centers", "keypoints", "displacements")


def match(expected: Outputs, actual: Outputs, *, score: float, box_px: float) -> tuple[peaks.Agreement, list]:
    """Finds for each expected detection an actual one of its class.

    Scores that are nearly equal change places, and the last of the K may be another one: a detection within
    `score` of the last score needs no counterpart.

    Args:
        expected: `boxes` [N, K, 4], `scores` [N, K], `classes` [N, K].
        actual: the same.
        score: largest difference of a score.
        box_px: largest difference of a box's side.

    Returns:
        The agreement, and (picture, expected row, actual row) of each pair.
    """
    pairs = []
    wanted = 0
    worst_score = worst_box = 0.0
    arrays = [outputs[name] for outputs in (expected, actual) for name in peaks.OUTPUTS]
    for picture, (boxes, scores, classes, other_boxes, other_scores, other_classes) in enumerate(
        zip(*arrays, strict=True)
    ):
        score_gap = np.abs(scores[:, None] - other_scores[None])
        box_gap = np.abs(boxes[:, None] - other_boxes[None]).max(axis=-1)
        fits = (classes[:, None] == other_classes[None]) & (score_gap <= score) & (box_gap <= box_px)
        free = np.ones(len(other_scores), bool)
        # fmax: else a NaN would leave nothing to compare.
        for row in np.flatnonzero(scores > np.fmax(scores[-1], other_scores[-1]) + score):
            wanted += 1
            candidates = np.flatnonzero(fits[row] & free)
            if not len(candidates):
                continue
            best = candidates[np.argmin(box_gap[row, candidates])]
            free[best] = False
            pairs.append((picture, int(row), int(best)))
            worst_score = max(worst_score, float(score_gap[row, best]))
            worst_box = max(worst_box, float(box_gap[row, best]))
    unmatched = 1 - len(pairs) / wanted if wanted else 0.0
    return peaks.Agreement(score=worst_score, box_px=worst_box, unmatched=unmatched, compared=wanted), pairs


def explain(
    cells: Outputs, expected: Outputs, actual: Outputs, *, score: float, box_px: float
) -> tuple[peaks.Agreement, list]:
    """Finds for each actual detection the cell that it is of, and for each peak a detection.

    A cell explains one detection at most. A peak that no rounding puts behind the last detection must have
    one, up to `REACH_PX` away: a neighbour as high may have taken its place. Detections below `score` are
    left alone, but for the first.

    Args:
        cells: of `candidates.Candidates`.
        expected: `boxes` [N, K, 4], `scores` [N, K], `classes` [N, K] of the run that the cells are of.
        actual: the same of the other.
        score: largest difference of a score.
        box_px: largest difference of a box's side.

    Returns:
        The agreement, and (picture, cell, actual row) of each pair.
    """
    pairs = []
    worst_score = worst_box = unmatched = 0.0
    compared = 0
    arrays = [outputs[name] for outputs in (cells, expected, actual) for name in peaks.OUTPUTS]
    for picture, (
        boxes,
        scores,
        classes,
        own,
        own_scores,
        own_classes,
        found,
        found_scores,
        labels,
    ) in enumerate(zip(*arrays, strict=True)):
        free = np.ones(len(scores), bool)
        # A NaN compares false: written so that it is looked at, and never explained.
        rows = np.flatnonzero(~(found_scores <= score) | (np.arange(len(found_scores)) == 0))
        explained = 0
        for row in rows:
            score_gap, box_gap = np.abs(scores - found_scores[row]), np.abs(boxes - found[row]).max(axis=1)
            fits = free & (classes == labels[row]) & (score_gap <= score) & (box_gap <= box_px)
            if not fits.any():
                continue
            best = int(np.where(fits, np.maximum(score_gap / score, box_gap / box_px), np.inf).argmin())
            free[best] = False
            pairs.append((picture, best, int(row)))
            explained += 1
            worst_score, worst_box = (
                max(worst_score, float(score_gap[best])),
                max(worst_box, float(box_gap[best])),
            )
        due = np.flatnonzero(own_scores > np.fmax(own_scores[-1], np.fmax(found_scores[-1], score)) + score)
        near = np.abs(own[due, None] - found).max(axis=2) <= REACH_PX + box_px
        missing = int((~(near & (own_classes[due, None] == labels)).any(axis=1)).sum())
        compared += len(rows) + missing
        unmatched = max(unmatched, 1 - explained / (len(rows) + missing))
    return (
        peaks.Agreement(score=worst_score, box_px=worst_box, unmatched=unmatched, compared=compared),
        pairs,
    )


def unlike_peaks(found: Outputs) -> list[str]:
    """Names of the outputs that a detector's `PEAKS` does not hold as they are.

    Args:
        found: all outputs, of one run.
    """
    names = {*FURTHER} & found.keys()
    task = next(task for task in contract.TASKS.values() if {tensor.name for tensor in task.peaks} == names)
    try:
        parts = tasks.split(found[PEAKS], task)
    except ValueError:  # of another width
        return [PEAKS]
    return [name for name, part in parts.items() if not np.array_equal(part, found[name], equal_nan=True)]


def beyond(
    name: str, expected: Outputs, actual: Outputs, pairs: list, *, relative: float, box_px: float
) -> tuple[float, float]:
    """How an output of `FURTHER` differs between paired rows.

    Args:
        name: of the output.
        expected: outputs of one run.
        actual: of the other.
        pairs: from `match`.
        relative: largest difference of what is not in pixels: of numbers by (1 + their size), of angles in
            radians, of directions 1 - cosine (they are of length 1).
        box_px: largest difference of a place or displacement, pixels.

    Returns:
        The part of the values (a key point is one) that differ by more, and the largest difference of the
        others.
    """
    if not pairs:
        return 0.0, 0.0
    pictures, rows, others = np.array(pairs).T
    gaps = _difference(name)(expected[name][pictures, rows], actual[name][pictures, others])
    fits = gaps <= (box_px if name in _PIXELS else relative)  # a NaN does not
    return float(1 - fits.mean()), float(gaps[fits].max(initial=0))


def _difference(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    if name in _PIXELS:
        return lambda wanted, found: np.abs(wanted - found).max(-1)
    if name == "alphas":
        return lambda wanted, found: np.abs((wanted - found + np.pi) % (2 * np.pi) - np.pi)
    if name == "embeddings":
        return lambda wanted, found: np.square(wanted - found).sum(-1) / 2
    return lambda wanted, found: np.abs(wanted - found) / (1 + np.abs(wanted))
