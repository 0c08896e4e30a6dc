"""COCO's results and its average precision."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from clients.annotations import Annotations, Id, load, numbers_first, whole
from clients.detections import Detections
from clients.errors import CenterNetError

METRICS = {
    "bbox": ("AP", "AP50", "AP75", "APS", "APM", "APL"),
    "keypoints": ("AP", "AP50", "AP75", "APM", "APL"),
}
"""By what is compared: boxes by their overlap, key points by their similarity (OKS)."""


def results(
    image_id: Id, detections: Detections, *, category_id: Callable[[str, int], Id]
) -> list[dict[str, Any]]:
    """Detections in the form of COCO's results; key points are all marked as labelled, like the original's.

    Args:
        image_id: Of the picture.
        detections: In the picture's pixels.
        category_id: Of a label and class index.
    """
    rows: list[dict[str, Any]] = []
    for box, score, class_id, label in zip(
        detections.xyxy, detections.scores, detections.class_ids, detections.labels, strict=True
    ):
        x1, y1, x2, y2 = map(float, box)
        rows.append(
            {
                "image_id": image_id,
                "category_id": category_id(label, int(class_id)),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(score),
            }
        )
    if detections.keypoints is not None:
        for row, points in zip(rows, detections.keypoints, strict=True):
            row["keypoints"] = np.insert(points, 2, 1, axis=1).ravel().astype(float).tolist()
    return rows


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """A result with its numbers to two decimals, as the original CenterNet writes it."""
    lists: dict[str, Any] = {
        key: [round(value, 2) for value in row[key]] for key in ("bbox", "keypoints") if key in row
    }
    return {**row, **lists, "score": round(row["score"], 2)}


def by_name(annotations: Annotations) -> Callable[[str, int], Id]:
    """Category ids by the class's name.

    Raises:
        CenterNetError: By the function, for a name that the annotations do not have.
    """

    def category_id(label: str, class_id: int) -> Id:
        found = annotations.category_id(label)
        if found is None:
            known = ", ".join(sorted(annotations.category_ids))
            raise CenterNetError(
                f"the model calls class {class_id} '{label}', {annotations.path} knows {known}: "
                "export the model with these names (--labels)"
            )
        return found

    return category_id


def average_precision(
    annotations: Path, rows: list[dict[str, Any]], image_ids: Iterable[Id], kind: str = "bbox"
) -> dict[str, float]:
    """COCO's metrics, 0 to 1, -1 where there is nothing to measure.

    Key points are weighed with COCO's constants if they are its 17, else all with 1 / their number.

    Args:
        annotations: The annotation file.
        rows: Results of the pictures.
        image_ids: The pictures that count.
        kind: One of `METRICS`.

    Returns:
        Values of the kind's `METRICS`.

    Raises:
        CenterNetError: The annotation file is missing, not in COCO's form, or has other key points than
            `rows`.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = load(annotations)
    # pycocotools wants ids that can be sorted, and none of 0.
    numbers = {
        kind: {key: number for number, key in enumerate(sorted(ids, key=numbers_first), 1)}
        for kind, ids in {
            "image_id": {image["id"] for image in content["images"]},
            "category_id": {category["id"] for category in content["categories"]},
        }.items()
    }

    def renumbered(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, **{kind: own[whole(row[kind])] for kind, own in numbers.items()}}

    joints = content["joints"]
    if kind == "keypoints":
        others = {len(row["keypoints"]) // 3 for row in rows} - {joints}
        if others:
            raise CenterNetError(f"{annotations} has {joints} key points, the model answers {others.pop()}")
    truth, found = COCO(), COCO()
    truth.dataset = {
        "images": [{"id": number} for number in numbers["image_id"].values()],
        "categories": [{"id": number} for number in numbers["category_id"].values()],
        "annotations": list(map(renumbered, content["annotations"])),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        # An empty list is refused by loadRes, but it is a legitimate (if poor) result.
        if rows:
            found = truth.loadRes(list(map(renumbered, rows)))
        evaluation = COCOeval(truth, found, kind)
        if kind == "keypoints" and joints != len(evaluation.params.kpt_oks_sigmas):
            evaluation.params.kpt_oks_sigmas = np.full(joints, 1 / joints)
        evaluation.params.imgIds = sorted(numbers["image_id"][whole(key)] for key in image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS[kind], map(float, evaluation.stats), strict=False))
