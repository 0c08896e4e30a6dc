"""COCO files as labelling tools write them."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients import coco
from clients.annotations import Annotations, load, locate, whole
from clients.errors import CenterNetError

BOXES = [[10.0, 10.0, 20.0, 20.0], [50.0, 10.0, 30.0, 30.0], [100.0, 90.0, 40.0, 20.0]]


def dataset(**first: object) -> dict[str, Any]:
    """Three boxes, all with the fields that COCO has; `first` replaces fields of the first one."""
    annotations = [
        {"id": 5 + i, "image_id": 1, "category_id": 4, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(BOXES)
    ]
    annotations[0].update(first)
    return {
        "images": [{"id": 1, "file_name": "coins.png"}],
        "categories": [{"id": 4, "name": "coin"}],
        "annotations": annotations,
    }


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def perfect(path: Path) -> float:
    """AP of detections that are the annotations themselves."""
    content = json.loads(path.read_bytes())
    rows = [
        {**one, "bbox": [float(value) for value in one["bbox"]], "score": 0.9}
        for one in content["annotations"]
        if one.get("bbox") and min(map(float, one["bbox"][2:])) > 0
    ]
    return coco.average_precision(path, rows, [image["id"] for image in content["images"]])["AP"]


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content = dataset()
    change(content)
    return content


def each(field: str, value: Callable[[int], object]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for number, one in enumerate(content["annotations"]):
            one[field] = value(number)

    return change


def without(*fields: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for one in content["annotations"]:
            for field in fields:
                del one[field]

    return change


def renamed(image: object, category: object) -> Callable[[dict[str, Any]], None]:
    """Other ids for the image and the category."""

    def change(content: dict[str, Any]) -> None:
        content["images"][0]["id"], content["categories"][0]["id"] = image, category
        for one in content["annotations"]:
            one["image_id"], one["category_id"] = image, category

    return change


@pytest.mark.parametrize(
    "change",
    [
        each("id", lambda number: number),
        each("id", lambda number: 7),
        each("id", lambda number: f"{number}f3a"),
        each("id", lambda number: None),
        without("id"),
        without("iscrowd"),
        without("area"),
        without("id", "iscrowd", "area"),
        each("area", lambda number: None),
        each("area", lambda number: 0),
        each("area", lambda number: "12.5"),
        each("iscrowd", lambda number: False),
        each("bbox", lambda number: [str(value) for value in BOXES[number]]),
        renamed(0, 0),
        renamed(1.0, 2.0),
        renamed("1", "2"),
        renamed("b0f1", "coin"),
        each("image_id", lambda number: "1"),
        each("category_id", lambda number: 4.0),
        lambda content: content["images"].append(dict(content["images"][0])),
        lambda content: content["annotations"].append({"image_id": 99, "category_id": 4, "bbox": BOXES[0]}),
        lambda content: content["annotations"].append({**content["annotations"][0], "bbox": [1, 2, 0, 9]}),
        lambda content: content["annotations"].append({**content["annotations"][0], "bbox": [1, 2, 9, -1]}),
        lambda content: content["annotations"].append({**content["annotations"][0], "bbox": []}),
    ],
)
def test_perfect_detections_have_a_precision_of_one(tmp_path: Path, change) -> None:
    path = write(tmp_path / "instances.json", edited(change))
    if any(one["image_id"] == 99 for one in json.loads(path.read_bytes())["annotations"]):
        rows = [{**one, "score": 0.9} for one in dataset()["annotations"]]
        assert coco.average_precision(path, rows, [1])["AP"] == pytest.approx(1)
    else:
        assert perfect(path) == pytest.approx(1)


@pytest.mark.parametrize("name", ["coco-ids-from-0.json", "coco-no-iscrowd.json"])
def test_perfect_detections_of_the_cases(shared: Path, name: str) -> None:
    assert perfect(shared / "cases" / name) == pytest.approx(1)


@pytest.mark.parametrize(("area", "expected"), [(None, 400), (0, 400), ("12.5", 12.5), (300, 300)])
def test_an_area_that_is_missing_is_the_boxs(tmp_path: Path, area: object, expected: float) -> None:
    path = write(tmp_path / "instances.json", dataset(area=area))
    assert load(path)["annotations"][0]["area"] == expected


def test_a_crowd_stays_one(tmp_path: Path) -> None:
    path = write(tmp_path / "instances.json", dataset(iscrowd="1", bbox=[0, 0, 400, 400]))
    assert load(path)["annotations"][0]["iscrowd"] == 1
    # What lies in a crowd is no false alarm.
    rows = [
        {"image_id": 1, "category_id": 4, "bbox": box, "score": 0.9} for box in (*BOXES[1:], [300, 300, 9, 9])
    ]
    rows[-1]["score"] = 0.99
    assert coco.average_precision(path, rows, [1])["AP"] == pytest.approx(1)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    content = dataset(bbox=[10, 10, 0, 20])
    own = content["annotations"][1]
    content["annotations"] += [{**own, "bbox": [1, 1, -3, 3]}, {**own, "bbox": None}, {**own, "image_id": 3}]
    content["annotations"] += [{**own, "category_id": 3}]
    annotations = Annotations.read(write(tmp_path / "instances.json", content))
    assert annotations.left_out == (
        "annotations left out of 7: 2 with an empty box, 1 without a box, 1 of images that are not listed, "
        "1 of categories that are not listed"
    )
    assert Annotations.read(write(tmp_path / "instances.json", dataset())).left_out == ""


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "utf-16", "utf-16-le", "utf-32"])
def test_marks_and_encodings(tmp_path: Path, encoding: str) -> None:
    content = dataset()
    content["categories"][0]["name"] = "硬币"
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert Annotations.read(path).category_ids == {"硬币": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("bbox"), "annotation 0 .*segmentation and no bbox"),
        (
            each("bbox", lambda number: [1, 2, 3]),
            r"annotation 0 \(counted from 0\): found the bbox \[1, 2, 3\]",
        ),
        (each("bbox", lambda number: [1, 2, 3, float("nan")]), "found the bbox"),
        (each("bbox", lambda number: [1, 2, 3, "wide"]), "annotation 0"),
        (each("bbox", lambda number: 5), "annotation 0"),
        (without("image_id"), "annotation 0 .*no 'image_id'"),
        (each("image_id", lambda number: [1]), r"annotation 0 .*found the id \[1\]"),
        (each("image_id", lambda number: True), "annotation 0 .*found the id True"),
        (each("image_id", lambda number: 1.5), "annotation 0 .*found the id 1.5"),
        (lambda content: content["annotations"].insert(0, "text"), "annotation 0"),
        (
            lambda content: content["images"].append({"id": 1, "file_name": "other.png"}),
            "two images have the id 1: coins.png and other.png",
        ),
        (
            lambda content: content["categories"].append({"id": 4, "name": "note"}),
            "two categories have the id 4: coin and note",
        ),
        (
            lambda content: content["images"].append({"id": 2, "file_name": "coins.png"}),
            "'coins.png' as images 1 and 2",
        ),
        (lambda content: content["images"].append({"id": 2}), "image 2 has no file_name"),
    ],
)
def test_what_is_ambiguous_or_broken_is_one_line(tmp_path: Path, change, message: str) -> None:
    content = dataset()
    for one in content["annotations"]:
        one["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    change(content)
    with pytest.raises(CenterNetError, match=message) as caught:
        Annotations.read(write(tmp_path / "instances.json", content))
    assert "instances.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_twice_means_the_category_that_is_used(tmp_path: Path) -> None:
    content = dataset()
    content["categories"].insert(0, {"id": 0, "name": "coin", "supercategory": "none"})
    path = write(tmp_path / "instances.json", content)
    assert Annotations.read(path).category_ids == {"coin": 4}
    content["annotations"][0]["category_id"] = 0
    with pytest.raises(CenterNetError, match="'coin' as categories 0 and 4"):
        Annotations.read(write(path, content))


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("coins.png", "coins.png"),
        ("images\\coins.png", "images/coins.png"),
        ("images\\coins.png", "coins.png"),
        ("C:\\data\\val\\coins.png", "val/coins.png"),
        ("\\\\server\\share\\coins.png", "coins.png"),
        ("/data/val/coins.png", "coins.png"),
        ("./val/coins.png", "val/coins.png"),
        ("../images/coins.png", "coins.png"),
        ("a:b.png", "a:b.png"),
        (unicodedata.normalize("NFD", "münze.png"), unicodedata.normalize("NFC", "münze.png")),
        (unicodedata.normalize("NFC", "münze.png"), unicodedata.normalize("NFD", "münze.png")),
    ],
)
def test_pictures_are_found_under_the_names_of_other_machines(
    tmp_path: Path, written: str, there: str
) -> None:
    content = dataset()
    content["images"][0]["file_name"] = written
    (name,) = Annotations.read(write(tmp_path / "instances.json", content)).image_ids
    path = tmp_path / "pictures" / there
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert locate(tmp_path / "pictures", name) == path


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "nowhere.png", "", "..", "x" * 300, "a\0b"])
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "pictures").mkdir()
    found = locate(tmp_path / "pictures", name)
    assert found.is_relative_to(tmp_path / "pictures")
    assert ".." not in found.parts


def test_ids_of_results_are_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "instances.json", edited(renamed("b0f1", 0)))
    annotations = Annotations.read(path)
    assert annotations.image_ids == {"coins.png": "b0f1"}
    assert annotations.category_ids == {"coin": 0}
    found = [whole(value) for value in (7, 7.0, "7", "07", "७", 10**400)]
    assert found == [7, 7, 7, "07", "७", 10**400]


def test_class_names_are_the_same_however_their_accents_are_encoded(tmp_path: Path) -> None:
    content = dataset()
    content["categories"][0]["name"] = unicodedata.normalize("NFD", "pièce")
    category_id = coco.by_name(Annotations.read(write(tmp_path / "instances.json", content)))
    assert category_id(unicodedata.normalize("NFC", "pièce"), 0) == 4
