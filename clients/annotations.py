"""COCO annotation files as labelling tools write them."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clients.errors import CenterNetError

Id = int | str


@dataclass(frozen=True)
class Annotations:
    """What a COCO annotation file says about its pictures.

    Attributes:
        path: The file.
        image_ids: Of each picture's file name, in the file's order; names have forward slashes.
        category_ids: Of each class name. COCO's 80 classes have ids up to 90; names know nothing of the gaps.
        joints: How many key points an object has; 0 if there are none.
        left_out: What of the annotations does not count, and why, in a sentence; mostly empty.
    """

    path: Path
    image_ids: dict[str, Id]
    category_ids: dict[str, Id]
    joints: int = 0
    left_out: str = ""

    @classmethod
    def read(cls, path: Path) -> Annotations:
        """Reads an instances file.

        Raises:
            CenterNetError: It is missing, not in COCO's form, or says two different things.
        """
        content = load(path)
        images: dict[str, Id] = {}
        categories: dict[str, Id] = {}
        used = {annotation["category_id"] for annotation in content["annotations"]}
        for image in content["images"]:
            if "file_name" not in image:
                raise CenterNetError(f"{path}: image {image['id']} has no file_name")
            name = str(image["file_name"]).replace("\\", "/")
            if name in images:
                raise CenterNetError(f"{path} has '{name}' as images {images[name]} and {image['id']}")
            images[name] = image["id"]
        for category in content["categories"]:
            name = category["name"]
            other = categories.get(name)
            if other is not None and {other, category["id"]} <= used:
                raise CenterNetError(f"{path} has '{name}' as categories {other} and {category['id']}")
            # Some tools list a group under the name of its only class.
            if other is None or category["id"] in used:
                categories[name] = category["id"]
        return cls(path, images, categories, content["joints"], content["left_out"])

    def category_id(self, name: str) -> Id | None:
        """The id of a class name, however its accents are encoded; None if there is none."""
        return self._categories.get(unicodedata.normalize("NFC", name))

    def image_id(self, relative: Path) -> Id | None:
        """The id of a picture by its path, else by its name alone if that is unmistakable, else None."""
        for known in (relative.as_posix(), relative.name):
            if known in self.image_ids:
                return self.image_ids[known]
        ids = self._base_names.get(relative.name, [])
        return ids[0] if len(ids) == 1 else None

    @cached_property
    def _categories(self) -> dict[str, Id]:
        return {unicodedata.normalize("NFC", name): key for name, key in self.category_ids.items()}

    @cached_property
    def _base_names(self) -> dict[str, list[Id]]:
        names: dict[str, list[Id]] = {}
        for name, key in self.image_ids.items():
            names.setdefault(name.rpartition("/")[2], []).append(key)
        return names


def load(path: Path) -> dict[str, Any]:
    """Reads a COCO annotation file and fills in what tools leave out.

    Images and categories are as in the file, their ids whole numbers wherever they are written as one.
    Annotations are what pycocotools expects: with ids from 1 (it takes id 0 for "no match"), `iscrowd`
    and `area`; if any has key points, all have x, y, visibility of `joints` of them. Those with an empty
    box, or of images or categories that the file does not list, are left out; `left_out` says how many.

    Raises:
        CenterNetError: It is missing, or not in COCO's form.
    """
    try:
        # Of bytes, json finds out whether they are UTF-8, with a mark or without, or UTF-16.
        content = json.loads(path.read_bytes())
        images = [{**image, "id": whole(image["id"])} for image in content["images"]]
        categories = [{"id": whole(one["id"]), "name": str(one["name"])} for one in content["categories"]]
        entries = list(content.get("annotations") or [])
    except OSError as error:
        raise CenterNetError(f"{path}: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CenterNetError(
            f"{path} is no COCO annotation file, expected 'images' and 'categories': "
            f"{type(error).__name__} {error}"
        ) from error
    _check_ids(path, "images", images, "file_name")
    _check_ids(path, "categories", categories, "name")
    known = ({image["id"] for image in images}, {category["id"] for category in categories})
    annotations: list[dict[str, Any]] = []
    reasons: Counter[str] = Counter()
    for number, entry in enumerate(entries):
        try:
            annotation, reason = _annotation(entry, *known)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else error
            raise CenterNetError(f"{path}: annotation {number} (counted from 0): {problem}") from error
        if reason:
            reasons[reason] += 1
        else:
            annotations.append({**annotation, "id": len(annotations) + 1})
    left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    left_out = f"annotations left out of {len(entries)}: {left_out}" if left_out else ""
    return {
        "images": images,
        "categories": categories,
        "annotations": annotations,
        "joints": _fill_key_points(path, annotations),
        "left_out": left_out,
    }


def locate(folder: Path, name: str) -> Path:
    """The picture that an annotation file calls `name`, which may begin with folders of another machine.

    Returns:
        A path below `folder`, of a file that is there if there is one.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    names = ["/".join(parts[first:]) for first in range(len(parts)) if ".." not in parts[first:]]
    for one in names:
        # macOS takes accents apart.
        for form in (one, unicodedata.normalize("NFC", one), unicodedata.normalize("NFD", one)):
            if os.path.isfile(folder / form):  # noqa: PTH113 - which is False, too, for what is no path at all
                return folder / form
    return folder / (names or ["?"])[0]


def whole(value: object) -> Id:
    """An id: 7 also where it is written 7.0 or "7"; other texts stay texts.

    Raises:
        ValueError: It is neither a whole number nor a text.
    """
    if isinstance(value, str):
        return int(value) if value.isdecimal() and str(int(value)) == value else value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"found the id {value!r}, expected a whole number or a text")


def _check_ids(path: Path, kind: str, entries: list[dict[str, Any]], name: str) -> None:
    seen: dict[Id, object] = {}
    for entry in entries:
        if seen.setdefault(entry["id"], entry.get(name)) != entry.get(name):
            raise CenterNetError(
                f"{path}: two {kind} have the id {entry['id']}: {seen[entry['id']]} and {entry.get(name)}"
            )


def _annotation(entry: dict[str, Any], images: set[Id], categories: set[Id]) -> tuple[dict[str, Any], str]:
    """An annotation as pycocotools expects it, and why it does not count, or nothing."""
    ids = {key: whole(entry[key]) for key in ("image_id", "category_id")}
    if ids["image_id"] not in images:
        return ids, "of images that are not listed"
    if ids["category_id"] not in categories:
        return ids, "of categories that are not listed"
    if not entry.get("bbox"):
        if entry.get("segmentation"):
            raise ValueError("it has a segmentation and no bbox, expected a bbox of x, y, width, height")
        return ids, "without a box"
    box = [float(value) for value in entry["bbox"]]
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"found the bbox {entry['bbox']}, expected x, y, width, height")
    area = float(entry.get("area") or 0)
    if not 0 < area < math.inf:
        area = box[2] * box[3]
    crowd = int(entry.get("iscrowd") or 0)
    made: dict[str, Any] = {**ids, "bbox": box, "area": area, "iscrowd": crowd}
    if entry.get("keypoints"):
        made["keypoints"] = _key_points(entry["keypoints"])
    return made, "with an empty box" * (min(box[2:]) <= 0)


def _key_points(values: list[Any]) -> np.ndarray:
    """Key points [J, 3] as COCO has them: x, y and visibility, 0 for what is not labelled.

    Args:
        values: Flat or one list a point; null for what is not labelled. Tools leave the visibility out.
    """
    flat = np.array(values, np.float64).ravel()
    triples, pairs = flat.size % 3 == 0, flat.size % 2 == 0
    if np.ndim(values) == 2:
        triples, pairs = len(values[0]) == 3, len(values[0]) == 2
    elif triples and pairs:  # Who writes visibilities writes 0, 1 and 2.
        triples = bool(np.isin(flat[2::3], (0, 1, 2)).all())
    if not triples and not pairs:
        raise ValueError(f"found {flat.size} numbers of key points, expected x, y, visibility of each")
    points = flat.reshape(-1, 3) if triples else np.insert(flat.reshape(-1, 2), 2, 2, axis=1)
    points[~np.isfinite(points).all(1)] = 0
    return points


def _fill_key_points(path: Path, annotations: list[dict[str, Any]]) -> int:
    """Gives all of them `keypoints` and `num_keypoints` if any has some; how many there are."""
    counts = {len(one["keypoints"]) for one in annotations if "keypoints" in one}
    if len(counts) > 1:
        raise CenterNetError(f"{path} has objects with {' and '.join(map(str, sorted(counts)))} key points")
    joints = counts.pop() if counts else 0
    for one in annotations if joints else ():
        points = one.get("keypoints", np.zeros((joints, 3)))
        one["num_keypoints"] = int((points[:, 2] > 0).sum())
        one["keypoints"] = points.ravel().tolist()
    return joints


def numbers_first(key: Id) -> tuple[bool, Id]:
    """Sorts ids, which may be numbers and texts."""
    return isinstance(key, str), key
