"""The interval of a difference in AP, on a set where the answer is known."""

import json

import pytest

from benchmarks.bootstrap import ap_interval

pytestmark = pytest.mark.wide

PICTURES = 40


@pytest.fixture
def annotations(tmp_path):
    boxes = [[10, 10, 20, 20], [50, 50, 30, 30]]
    facts = {
        "images": [{"id": i, "width": 100, "height": 100} for i in range(PICTURES)],
        "categories": [{"id": 1, "name": "coin"}],
        "annotations": [
            {"id": 2 * i + k + 1, "image_id": i, "category_id": 1, "bbox": box, "area": 9, "iscrowd": 0}
            for i in range(PICTURES)
            for k, box in enumerate(boxes)
        ],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(facts))
    return path


def results(missing=()):
    """Perfect but for the second object of some pictures."""
    return [
        {"image_id": i, "category_id": 1, "bbox": box, "score": 0.9 - 0.001 * i}
        for i in range(PICTURES)
        for k, box in enumerate([[10, 10, 20, 20], [50, 50, 30, 30]])
        if k == 0 or i not in missing
    ]


def interval(annotations, rows, base):
    return ap_interval(annotations, rows, base, range(PICTURES), draws=200)


def test_the_same_detections_differ_by_nothing(annotations):
    assert interval(annotations, results(), results()) == (0, 0)
    assert interval(annotations, results({1, 2}), results({1, 2})) == (0, 0), (
        "the draws are the same for both"
    )


def test_what_misses_a_part_of_all_pictures_is_below_zero(annotations):
    low, high = interval(annotations, results(set(range(0, PICTURES, 2))), results())
    assert -0.4 < low < -0.25 < high < -0.12, "a quarter of the objects"


def test_what_one_picture_decides_is_not_sure(annotations):
    low, high = interval(annotations, results({3}), results())
    assert low < 0
    assert high == 0


def test_no_detection_at_all(annotations):
    low, high = interval(annotations, [], results())
    assert (low, high) == (-1, -1)
