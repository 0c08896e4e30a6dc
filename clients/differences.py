"""How far the answers to one picture are from another's: what average precision does not look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from clients.detections import Detections

SAME_BOX = 0.5
"""Least overlap (IoU) of two boxes of one object."""

UNITS = {
    "keypoints": "pixels",
    "locations": "m",
    "dimensions": "m",
    "rotations": "radians",
    "embeddings": "1 - cosine",
}
"""What is compared, of `detections.EXTRAS`: all but identities, which mean nothing beyond their video."""


def of(found: Detections, expected: Detections) -> list[dict[str, float]]:
    """For each expected detection how far its counterpart's `UNITS` are: the worst key point or coordinate.

    The counterpart is of the same class, and its box overlaps most; the best scores choose first. Without one
    there is nothing.
    """
    from supervision import box_iou_batch  # takes more than a second

    overlaps = box_iou_batch(expected.xyxy, found.xyxy)
    overlaps[expected.class_ids[:, None] != found.class_ids] = 0
    rows: list[dict[str, float]] = []
    for row, overlap in enumerate(overlaps):
        if overlap.max(initial=0) < SAME_BOX:
            rows.append({})
            continue
        other = int(overlap.argmax())
        overlaps[:, other] = 0
        one, counterpart = expected[row : row + 1].extras, found[other : other + 1].extras
        names = one.keys() & counterpart.keys() & UNITS.keys()
        rows.append({name: _gap(name, one[name][0], counterpart[name][0]) for name in names})
    return rows


def _gap(name: str, one: np.ndarray, other: np.ndarray) -> float:
    if name == "keypoints":
        return float(np.linalg.norm(one - other, axis=1).max())
    if name == "rotations":
        return float(abs((one - other + np.pi) % (2 * np.pi) - np.pi))
    if name == "embeddings":
        return float(np.square(one - other).sum() / 2)  # of length 1
    return float(np.abs(one - other).max())


def summary(gaps: Iterable[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    """Of each name how many there are, the median, the 99th percentile and the largest."""
    values = defaultdict(list)
    for one in gaps:
        for name, gap in one.items():
            values[name].append(gap)
    return {
        name: (len(values[name]), *map(float, np.quantile(values[name], [0.5, 0.99, 1])))
        for name in UNITS
        if name in values
    }
