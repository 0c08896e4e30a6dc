"""What is drawn of key points, boxes in space and identities; and cameras."""

import json
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
from centernet_image.tasks.boxes3d import corners

from clients import camera, drawing
from clients.detections import Detections
from clients.errors import CenterNetError

CAMERA = np.array([[700, 0, 320, 0], [0, 700, 240, 0], [0, 0, 1, 0]], np.float32)
PALETTE = drawing.palette()[0]


def detections(boxes: list[list[float]], classes: list[int], **extras: object) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.array(classes, np.int32),
        ("thing",) * count,
        **{name: np.array(value) for name, value in extras.items()},
    )


def mask(picture: np.ndarray, color: sv.Color) -> np.ndarray:
    return (picture == np.array(color.as_bgr(), np.uint8)).all(axis=-1)


def grey(height: int = 480, width: int = 640) -> np.ndarray:
    return np.full((height, width, 3), 127, np.uint8)


def color_at(drawn: np.ndarray, x: float, y: float) -> tuple[int, ...]:
    return tuple(drawn[round(y), round(x)].tolist())


def test_a_skeleton_has_cocos_edges_and_every_joint() -> None:
    joints = np.random.default_rng(0).uniform((200, 150), (600, 450), (17, 2)).astype(np.float32)
    found = detections([[190, 140, 610, 460]], [3], keypoints=[joints])
    drawn = drawing.draw(grey(), found)
    color = PALETTE.by_idx(3).as_bgr()
    for one, other in drawing.COCO_PERSON:
        for share in (0.25, 0.5, 0.75):
            x, y = joints[one] * share + joints[other] * (1 - share)
            assert mask(drawn[int(y) - 1 : int(y) + 3, int(x) - 1 : int(x) + 3], PALETTE.by_idx(3)).any()
    assert all(color_at(drawn, int(x), int(y)) == color for x, y in joints)
    # Left shoulder (5) and right hip (12) are not joined, nor are the wrists (9, 10).
    assert {(5, 12), (9, 10)}.isdisjoint({tuple(sorted(edge)) for edge in drawing.COCO_PERSON})
    assert {(5, 6), (11, 12), (5, 7), (7, 9)} <= {tuple(sorted(edge)) for edge in drawing.COCO_PERSON}


def test_other_key_points_are_points() -> None:
    joints = [[250.0, 200.0], [350.0, 200.0], [300.0, 300.0]]
    found = detections([[200, 150, 400, 350]], [0], keypoints=[joints])
    drawn = drawing.draw(grey(), found)
    color = PALETTE.by_idx(0).as_bgr()
    assert all(color_at(drawn, x, y) == color for x, y in joints)
    assert color_at(drawn, 300, 200) == (127, 127, 127)


def test_key_points_far_outside_and_none() -> None:
    joints = np.full((1, 17, 2), 1e9, np.float32)
    joints[0, 0] = 300, 200
    found = detections([[200, 150, 400, 350]], [0], keypoints=joints)
    assert drawing.draw(grey(), found).shape == grey().shape
    nothing = detections([], [], keypoints=np.zeros((0, 17, 2), np.float32))
    assert (drawing.draw(grey(), nothing) == 127).all()


def boxes_3d(location: list[float], dimensions: list[float], rotation: float) -> Detections:
    place = {"locations": [location], "dimensions": [dimensions], "rotations": [rotation]}
    return detections([[1, 1, 30, 30]], [2], **place)


def test_a_box_in_space_stands_on_its_location() -> None:
    """A cube of 2 m whose bottom is 1 m below the camera: from 9 to 11 m, by hand."""
    found = boxes_3d([0, 1, 10], [2, 2, 2], 0.0)
    drawn = drawing.draw(grey(), found, CAMERA)
    own = mask(drawn, PALETTE.by_idx(2))
    near, far = 700 / 9, 700 / 11
    for size in (near, far):
        for x, y in ((size, 0), (-size, 0), (0, size), (0, -size)):  # Middles of the edges of both faces.
            column, row = round(320 + x), round(240 + y)
            assert own[row - 2 : row + 3, column - 2 : column + 3].any(), (x, y)
    assert not own[200:280, 280:360].any()
    # The rectangle is not drawn beside it, and without a camera only that.
    assert not own[25:32, 1:30].any()
    assert mask(drawing.draw(grey(), found), PALETTE.by_idx(2))[25:32, 1:30].any()


def test_rotation_height_and_length_of_a_box_in_space() -> None:
    long = corners(np.array([0.0, 0, 10]), np.array([1.5, 1, 4]), 0.0)
    np.testing.assert_allclose(np.ptp(long, axis=0), [4, 1.5, 1])
    assert (long[:, 1].min(), long[:, 1].max()) == (-1.5, 0)
    # KITTI: a quarter turn points it at the camera, from right to near.
    turned = corners(np.array([0.0, 0, 10]), np.array([1.5, 1, 4]), np.pi / 2)
    np.testing.assert_allclose(np.ptp(turned, axis=0), [1, 1.5, 4])
    front = long[:, 0] > 1.9
    np.testing.assert_allclose(turned[front][:, 2], 8)


def test_what_is_behind_the_camera_is_not_drawn() -> None:
    assert np.isnan(camera.project(np.array([[0, 0, -5.0]]), CAMERA)).all()
    drawn = drawing.draw(grey(), boxes_3d([0, 1, -10], [2, 2, 2], 0.0), CAMERA)
    assert not mask(drawn, PALETTE.by_idx(2))[60:].any()


def test_enlarged_pictures_keep_their_joints_and_cameras() -> None:
    found = detections([[1, 1, 30, 30]], [2], keypoints=[[[10.0, 20.0]]])
    large, same, scaled = drawing.enlarged(grey(100, 200), found, CAMERA)
    assert large.shape[:2] == (400, 800)
    np.testing.assert_array_equal(same.keypoints, [[[40, 80]]])
    points = np.array([[1.0, 2, 10]])
    np.testing.assert_allclose(camera.project(points, scaled), camera.project(points, CAMERA) * 4, rtol=1e-6)


def test_identities_have_colours_traces_and_numbers() -> None:
    traces = drawing.traces(480, 640)
    for number in range(4):
        x = 50.0 + 100 * number
        found = detections([[x, 100, x + 40, 140], [300, 400, 340, 440]], [0, 0], tracks=[7, -1])
        drawn = drawing.draw(grey(), found, None, traces)
    own = mask(drawn, PALETTE.by_idx(7))
    assert own[120, 80:340].all()  # From the first place to the last.
    assert mask(drawn, PALETTE.by_idx(0))[420, 298:303].any()  # Whoever has no identity has the class's.
    assert not own[380:460].any()
    others = detections([[350, 100, 390, 140]], [0], tracks=[12])
    assert not np.array_equal(drawing.draw(grey(), others)[90:100], drawn[90:100])
    assert drawing._caption("", "coin", 0, 0.97, 12) == "coin #12 0.97"
    assert drawing._caption("", "coin", 0, 0.97, -1) == "coin 0.97"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("calib.txt", "P0: 1 0 0 0 0 1 0 0 0 0 1 0\nP2: 7e2 0 320 1 0 700 240 2 0 0 1 3\nTr: 1 2 3\n"),
        ("plain.txt", "700 0 320 1\n0 700 240 2\n0 0 1 3\n"),
        ("camera.json", json.dumps([[700, 0, 320, 1], [0, 700, 240, 2], [0, 0, 1, 3]])),
        ("kitti.json", json.dumps({"P2": [700, 0, 320, 1, 0, 700, 240, 2, 0, 0, 1, 3]})),
    ],
)
def test_cameras(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    expected = [[700, 0, 320, 1], [0, 700, 240, 2], [0, 0, 1, 3]]
    np.testing.assert_array_equal(camera.read(tmp_path / name), np.array(expected, np.float32))


def test_a_camera_at_the_origin(tmp_path: Path) -> None:
    path = tmp_path / "intrinsics.json"
    path.write_text("[[700, 0, 320], [0, 700, 240], [0, 0, 1]]", encoding="utf-8")
    np.testing.assert_array_equal(camera.read(path), CAMERA)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "1 2 3"),
        ("a.txt", "P2: one two"),
        ("a.json", "{}"),
        ("a.json", "[1, 2"),
        ("a.json", "null"),
        ("a.txt", "0 " * 12),
        ("a.txt", "nan " * 12),
        ("a.txt", ""),
    ],
)
def test_no_camera_is_one_line(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(CenterNetError, match="expected 3x4 numbers") as caught:
        camera.read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
