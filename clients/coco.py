"""COCO's formats: annotations in, results out, average precision."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.detections import Detections
from clients.errors import CenterNetError

METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL")


@dataclass(frozen=True)
class Annotations:
    """What a COCO annotation file says about its pictures.

    Attributes:
        path: The file.
        image_ids: Of each picture's file name, in the file's order.
        category_ids: Of each class name. COCO's 80 classes have ids up to 90; names know nothing of the gaps.
    """

    path: Path
    image_ids: dict[str, int]
    category_ids: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> Annotations:
        """Reads an instances file.

        Raises:
            CenterNetError: It is missing, or not in COCO's form.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            images = {image["file_name"]: image["id"] for image in content["images"]}
            categories = {category["name"]: category["id"] for category in content["categories"]}
        except OSError as error:
            raise CenterNetError(f"{path}: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise CenterNetError(
                f"{path} is no COCO annotation file, expected 'images' and 'categories': "
                f"{type(error).__name__} {error}"
            ) from error
        return cls(path, images, categories)


def results(
    image_id: int | str,
    detections: Detections,
    *,
    category_id: Callable[[str, int], int],
) -> list[dict[str, Any]]:
    """Detections in the form of COCO's results.

    Args:
        image_id: Of the picture.
        detections: In the picture's pixels.
        category_id: Of a label and class index.
    """
    rows = []
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
    return rows


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """A result with box and score to two decimals, as the original CenterNet writes it."""
    return {**row, "bbox": [round(value, 2) for value in row["bbox"]], "score": round(row["score"], 2)}


def by_name(annotations: Annotations) -> Callable[[str, int], int]:
    """Category ids by the class's name.

    Raises:
        CenterNetError: By the function, for a name that the annotations do not have.
    """

    def category_id(label: str, class_id: int) -> int:
        if label not in annotations.category_ids:
            known = ", ".join(sorted(annotations.category_ids))
            raise CenterNetError(
                f"the model calls class {class_id} '{label}', {annotations.path} knows {known}: "
                "export the model with these names (--labels)"
            )
        return annotations.category_ids[label]

    return category_id


def average_precision(
    annotations: Path, rows: list[dict[str, Any]], image_ids: Iterable[int]
) -> dict[str, float]:
    """COCO's box metrics, 0 to 1, -1 where there is nothing to measure.

    Args:
        annotations: The annotation file.
        rows: Results of the pictures.
        image_ids: The pictures that count.

    Returns:
        Values of `METRICS`.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        # An empty list is refused by loadRes, but it is a legitimate (if poor) result.
        found = truth.loadRes(rows) if rows else COCO()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, map(float, evaluation.stats), strict=False))
