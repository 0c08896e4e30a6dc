"""How sure a difference in average precision is, on the pictures that there are: a paired bootstrap."""

import contextlib
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = 1000


def ap_interval(
    annotations: Path,
    rows: list[dict[str, Any]],
    base: list[dict[str, Any]],
    image_ids: Collection[Any],
    *,
    draws: int = DRAWS,
) -> tuple[float, float]:
    """The 95 % interval of AP(rows) - AP(base).

    Each draw takes as many pictures as there are, with replacement, the same for both, and matches nothing
    anew (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13: percentiles).

    Args:
        annotations: COCO's annotation file.
        rows: COCO results.
        base: COCO results on the same pictures.
        image_ids: The pictures that count.
        draws: How many.
    """
    evaluations = [_Evaluation(annotations, each, image_ids) for each in (rows, base)]
    random = np.random.default_rng(0)
    differences = []
    for _ in range(draws):
        chosen = random.integers(0, len(image_ids), len(image_ids))
        new, old = (evaluation.average_precision(chosen) for evaluation in evaluations)
        differences.append(new - old)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


class _Evaluation:
    """COCO's evaluation of all pictures, one by one, to be summed up over any choice of them."""

    def __init__(self, annotations: Path, rows: list[dict[str, Any]], image_ids: Collection[Any]) -> None:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(annotations)
            self._eval = COCOeval(truth, truth.loadRes(rows) if rows else COCO(), "bbox")
            parameters = self._eval.params
            parameters.imgIds = sorted(image_ids)
            # Of all sizes, which is what AP is about.
            parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], parameters.areaRngLbl[:1]
            parameters.maxDets = parameters.maxDets[-1:]
            self._eval.evaluate()
        pictures = len(parameters.imgIds)
        self._by_class = [
            self._eval.evalImgs[start : start + pictures]
            for start in range(0, len(self._eval.evalImgs), pictures)
        ]

    def average_precision(self, chosen: np.ndarray) -> float:
        """AP over the pictures of these indices."""
        self._eval.evalImgs = [found[index] for found in self._by_class for index in chosen]
        with contextlib.redirect_stdout(io.StringIO()):
            self._eval.accumulate()
        precision = self._eval.eval["precision"]
        return float(precision[precision > -1].mean())
