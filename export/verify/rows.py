"""Detections of two runs held against each other, row by row, whatever their order."""

from collections.abc import Callable, Mapping

import numpy as np
from centernet_image import contract, tasks

from export.verify import peaks

Outputs = Mapping[str, np.ndarray]

FURTHER = tuple(dict.fromkeys(tensor.name for task in contract.TASKS.values() for tensor in task.peaks))
"""Outputs of a network beyond `peaks.OUTPUTS`, one row for each detection."""

PEAKS = contract.PEAKS.name

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
    looked_at = []
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
            candidates = np.flatnonzero(fits[row] & free)
            looked_at.append((int(classes[row]), len(candidates) > 0))
            if not len(candidates):
                continue
            best = candidates[np.argmin(box_gap[row, candidates])]
            free[best] = False
            pairs.append((picture, int(row), int(best)))
            worst_score = max(worst_score, float(score_gap[row, best]))
            worst_box = max(worst_box, float(box_gap[row, best]))
    agreement = peaks.Agreement(
        score=worst_score,
        box_px=worst_box,
        unmatched=1 - len(pairs) / len(looked_at) if looked_at else 0.0,
        of_a_class=peaks.of_a_class(looked_at),
        compared=len(looked_at),
    )
    return agreement, pairs


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
        pairs: from `match`, or from `peaks.explain` with its cells as `expected`.
        relative: largest difference of what is not in pixels: of numbers by (1 + their size), of angles in
            radians, of directions 1 - cosine (they are of length 1).
        box_px: largest difference of a place or displacement, pixels.

    Returns:
        The part of the values (a key point is one) that differ by more, or of the worst of a row's values if
        that is more: one of 17 is lost among the others. And the largest difference of the rest.
    """
    if not pairs:
        return 0.0, 0.0
    pictures, rows, others = np.array(pairs).T
    gaps = _difference(name)(expected[name][pictures, rows], actual[name][pictures, others])
    fits = gaps <= (box_px if name in _PIXELS else relative)  # a NaN does not
    of_one = ((~fits).sum(axis=0).max() - 1) / len(fits)  # a single row may be at a rule's limit
    return float(max(1 - fits.mean(), of_one)), float(gaps[fits].max(initial=0))


def _difference(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    if name in _PIXELS:
        return lambda wanted, found: np.abs(wanted - found).max(-1)
    if name == "alphas":
        return lambda wanted, found: np.abs((wanted - found + np.pi) % (2 * np.pi) - np.pi)
    if name == "embeddings":
        return lambda wanted, found: np.square(wanted - found).sum(-1) / 2
    return lambda wanted, found: np.abs(wanted - found) / (1 + np.abs(wanted))
