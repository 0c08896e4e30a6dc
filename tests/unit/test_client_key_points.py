"""COCO's key points: annotation files as tools write them, and OKS AP of hand-made cases."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.cocoeval import Params

from clients import coco
from clients.annotations import Annotations, load
from clients.detections import Detections
from clients.errors import CenterNetError

BOX = [100.0, 100.0, 80.0, 200.0]
AREA = BOX[2] * BOX[3]


def points(joints: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform((100, 100), (180, 300), (joints, 2)).round(1)


def write(path: Path, *key_points: object) -> Path:
    """One picture with an object for each of the key points."""
    annotations = [
        {"image_id": 1, "category_id": 1, "bbox": [BOX[0] + 300 * n, *BOX[1:]]}
        | ({} if one is None else {"keypoints": one})
        for n, one in enumerate(key_points)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def rows(*key_points: np.ndarray) -> list[dict]:
    """Results, the best first, each in its box."""
    count = len(key_points)
    x1 = BOX[0] + 300 * np.arange(count)
    xyxy = np.stack([x1, np.full(count, BOX[1]), x1 + BOX[2], np.full(count, BOX[1] + BOX[3])], 1)
    scores = np.linspace(0.9, 0.8, count)
    found = Detections(
        xyxy, scores, np.zeros(count, np.int32), ("person",) * count, keypoints=np.array(key_points)
    )
    return coco.results(1, found, category_id=lambda label, class_id: 1)


def average_precision(path: Path, found: list[dict]) -> float:
    return coco.average_precision(path, found, [1], "keypoints")["AP"]


@pytest.mark.parametrize("joints", [17, 5])
def test_ap_of_a_known_similarity(tmp_path: Path, joints: int) -> None:
    """Of two objects one is exact, the other's similarity is 0.72: five of ten thresholds are passed."""
    sigmas = Params("keypoints").kpt_oks_sigmas if joints == 17 else np.full(joints, 1 / joints)
    true = [points(joints), points(joints, 1) + np.array([300, 0])]
    path = write(tmp_path / "a.json", *(np.insert(one, 2, 2, axis=1).ravel().tolist() for one in true))
    away = 2 * sigmas * np.sqrt(2 * AREA * -np.log(0.72))
    moved = true[1] + np.stack([away, 0 * away], 1)
    # Half the recall at a precision of 1 is 51 of 101 points of the curve.
    assert average_precision(path, rows(true[0], moved)) == pytest.approx((5 + 5 * 51 / 101) / 10)
    assert average_precision(path, rows(*true)) == 1
    assert average_precision(path, []) == 0


def test_key_points_as_tools_write_them(tmp_path: Path) -> None:
    true = points(17)
    half = true.tolist()
    half[3] = [None, None]
    flat = true.ravel().tolist()
    triples = np.insert(true, 2, 1, axis=1).tolist()
    triples[3][2] = None
    path = write(tmp_path / "a.json", flat, half, triples, None, [0] * 51)
    assert Annotations.read(path).joints == 17
    entries = load(path)["annotations"]
    assert [entry["num_keypoints"] for entry in entries] == [17, 16, 16, 0, 0]
    for entry in entries[:3]:
        labelled = np.reshape(entry["keypoints"], (17, 3))
        kept = labelled[:, 2] > 0
        np.testing.assert_array_equal(labelled[kept, :2], true[kept])
    # What is not labelled does not count.
    wrong = true.copy()
    wrong[3] += 500
    whole = write(tmp_path / "b.json", half)
    assert average_precision(whole, rows(wrong)) == pytest.approx(1)
    assert average_precision(write(tmp_path / "c.json", flat), rows(wrong)) < 0.99


def test_pairs_and_triples_where_both_would_fit(tmp_path: Path) -> None:
    pairs = points(6).ravel().tolist()
    triples = np.insert(points(4), 2, (0, 1, 2, 2), axis=1).ravel().tolist()
    assert Annotations.read(write(tmp_path / "a.json", pairs)).joints == 6
    assert Annotations.read(write(tmp_path / "b.json", triples)).joints == 4


def test_boxes_alone_have_no_key_points(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", None)
    assert Annotations.read(path).joints == 0
    assert "keypoints" not in load(path)["annotations"][0]


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", points(5).ravel().tolist(), points(4).ravel().tolist())
    with pytest.raises(CenterNetError, match="objects with 4 and 5 key points"):
        load(path)
    path = write(tmp_path / "b.json", points(5).ravel().tolist())
    with pytest.raises(CenterNetError, match="has 5 key points, the model answers 17"):
        average_precision(path, rows(points(17)))
    with pytest.raises(CenterNetError, match=r"annotation 0 .*7 numbers of key points"):
        load(write(tmp_path / "c.json", [1.0] * 7))


def test_results_are_rounded_as_the_original_does(tmp_path: Path) -> None:
    (row,) = rows(points(17) + 0.001)
    rounded = coco.rounded(row)
    np.testing.assert_array_equal(rounded["keypoints"], np.round(row["keypoints"], 2))
    assert rounded["keypoints"] != row["keypoints"]
