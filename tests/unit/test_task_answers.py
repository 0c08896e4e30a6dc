"""What each task's postprocess makes of peaks, against the original's answers and against plain loops."""

import itertools
import math

import numpy as np
import pytest
import reference
from centernet_image import tasks
from centernet_image.contract import FITS, TASKS
from centernet_image.description import Description
from centernet_image.geometry import frame_transform
from centernet_image.tasks.boxes3d import enclosing

PICTURE = "16004479832"
SIZE = (600, 800)
CAMERA = np.array([[[700, 0, 440, 40], [0, 690, 300, -0.5], [0, 0, 1, 0.005]]], np.float32)


def shapes(task, rows, open_side):
    """The tensors of one picture's `PEAKS`, which the network also answers one by one."""
    sides = {
        tensor.name: [open_side if side < 0 else side for side in tensor.shape[1:]] for tensor in task.columns
    }
    return {name: (2, rows, *shape) for name, shape in sides.items()}


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("open_side", [0, 1, 17])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_peaks_are_split_into_what_they_were_made_of(task, open_side, rows):
    rng = np.random.default_rng(2)
    parts = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes(task, rows, open_side).items()
    }
    columns = [part.reshape(2, rows, math.prod(part.shape[2:])) for part in parts.values()]
    peaks = np.concatenate(columns, axis=2)
    found = tasks.split(peaks, task)
    assert list(found) == list(parts)
    for name, part in parts.items():
        assert found[name].shape == part.shape
        np.testing.assert_array_equal(found[name], part)
        assert not part.size or np.shares_memory(found[name], peaks)


@pytest.mark.parametrize(
    ("task", "columns", "expected"),
    [
        ("detect", 5, "6: boxes, scores, classes"),
        ("detect", 7, "6: boxes, scores, classes"),
        ("boxes3d", 12, "13: boxes, scores, classes, centers, depths, alphas, dimensions"),
        ("keypoints", 9, "6 and a multiple of 2: boxes, scores, classes, keypoints"),
        ("embeddings", 5, "6 and a multiple of 1: boxes, scores, classes, embeddings"),
    ],
)
def test_peaks_of_another_width_are_refused(task, columns, expected):
    with pytest.raises(ValueError, match=f"^peaks: found {columns} columns, expected {expected}$"):
        tasks.split(np.zeros((1, 3, columns), np.float32), TASKS[task])


def network(task, frame_size=(64, 96), fit="whole", classes=3):
    names = tuple(f"class {index}" for index in range(classes))
    return Description(classes=names, input_size=frame_size, top_k=5, task=task, fit=fit)


def answer(task, tensors, *, count=5, threshold=0.0, pictures=1, size=SIZE, **facts):
    """Of `count` peaks in each picture, whose boxes, scores and classes do not matter unless given."""
    rng = np.random.default_rng(1)
    usual = {
        "boxes": rng.uniform(0, 60, (pictures, count, 4)).astype(np.float32),
        "scores": np.linspace(0.9, 0.1, count, dtype=np.float32)[None].repeat(pictures, 0),
        "classes": np.zeros((pictures, count), np.int32),
    }
    peaks = tasks.Peaks(usual | tensors, np.array([size] * pictures), network(task, **facts))
    return tasks.answer(peaks, thresholds=threshold)


def test_keypoints_go_back_to_the_picture_and_rows_that_do_not_count_are_zero():
    keypoints = np.random.default_rng(0).uniform(0, 60, (2, 5, 17, 2)).astype(np.float32)
    found = answer("keypoints", {"keypoints": keypoints}, pictures=2, threshold=0.5)["detection_keypoints"]
    matrix = frame_transform(SIZE, (64, 96))
    np.testing.assert_allclose(
        found[:, :3] @ matrix[:, :2].T + matrix[:, 2], keypoints[:, :3], rtol=1e-5, atol=1e-3
    )
    assert not found[:, 3:].any()


def test_embeddings_are_as_they_are():
    embeddings = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)
    found = answer("embeddings", {"embeddings": embeddings}, fit="letterbox", threshold=0.5)
    np.testing.assert_array_equal(found["detection_embeddings"][0, :3], embeddings[0, :3])
    assert not found["detection_embeddings"][0, 3:].any()


@pytest.mark.parametrize("fit", FITS)
def test_boxes_go_back_by_the_networks_fit(fit):
    boxes = np.random.default_rng(0).uniform(0, 60, (1, 5, 4)).astype(np.float32)
    found = answer("embeddings", {"boxes": boxes, "embeddings": np.ones((1, 5, 8), np.float32)}, fit=fit)
    matrix = frame_transform(SIZE, (64, 96), fit)
    corners = found["detection_boxes"].reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(corners, boxes.reshape(-1, 2), atol=1e-3)


def boxes3d(count=5, seed=0, **more):
    rng = np.random.default_rng(seed)
    return {
        "centers": rng.uniform(0, 90, (1, count, 2)).astype(np.float32),
        "depths": rng.uniform(5, 60, (1, count)).astype(np.float32),
        "alphas": rng.uniform(-4, 4, (1, count)).astype(np.float32),
        "dimensions": rng.uniform(1, 4, (1, count, 3)).astype(np.float32),
        "camera": CAMERA,
        **more,
    }


def project(point, camera=CAMERA[0]):
    u, v, depth = camera.astype(float) @ [*point, 1]
    return np.array([u / depth, v / depth])


def test_a_location_is_seen_where_the_peak_is():
    """The middle of a 3-D box, half its height above the location, projects to the centre of its peak."""
    given = boxes3d()
    found = answer("boxes3d", given, fit="width")
    matrix = frame_transform(SIZE, (64, 96), "width")
    for k in range(5):
        x, y, z = found["detection_locations"][0, k].astype(float)
        height = given["dimensions"][0, k, 0]
        seen = matrix[:, :2] @ project((x, y - height / 2, z)) + matrix[:, 2]
        np.testing.assert_allclose(seen, given["centers"][0, k], atol=2e-3)
        assert z == pytest.approx(given["depths"][0, k] - 0.005, rel=1e-6)
        turn = given["alphas"][0, k] + np.arctan2(
            (given["centers"][0, k, 0] - matrix[0, 2]) / matrix[0, 0] - 440, 700
        )
        rotation = found["detection_rotations"][0, k]
        assert abs(rotation) <= np.pi + 1e-6
        assert rotation == pytest.approx((turn + np.pi) % (2 * np.pi) - np.pi, abs=1e-5)
    np.testing.assert_array_equal(found["detection_dimensions"], given["dimensions"])


def test_each_picture_has_its_own_camera():
    pair = {name: np.concatenate([array, array]) for name, array in boxes3d().items()}
    pair["camera"][1, 0, 0] = 350
    found = answer("boxes3d", pair, pictures=2, fit="width")["detection_locations"]
    pair["camera"][0] = pair["camera"][1]
    again = answer("boxes3d", pair, pictures=2, fit="width")["detection_locations"]
    np.testing.assert_array_equal(found[1], again[1])
    assert (found[0] != again[0]).any()


def test_without_sizes_a_box_encloses_the_projected_one():
    given = boxes3d()
    found = answer(
        "boxes3d", given | {"boxes": given["centers"].repeat(2, axis=1).reshape(1, 5, 4)}, fit="width"
    )
    corners = list(itertools.product((-0.5, 0.5), (-1, 0), (-0.5, 0.5)))
    for k in range(5):
        height, width, length = found["detection_dimensions"][0, k].astype(float)
        turn = found["detection_rotations"][0, k]
        cos, sin = np.cos(turn), np.sin(turn)
        points = [
            project(
                found["detection_locations"][0, k]
                + [cos * a * length + sin * c * width, b * height, -sin * a * length + cos * c * width]
            )
            for a, b, c in corners
        ]
        expected = [*np.min(points, axis=0), *np.max(points, axis=0)]
        np.testing.assert_allclose(found["detection_boxes"][0, k], expected, rtol=1e-3, atol=0.05)
    with_sizes = answer("boxes3d", given, fit="width")
    assert not np.allclose(with_sizes["detection_boxes"], found["detection_boxes"])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(((0, 0, 0), 0), ((0, 1, 1), 0), ((0, 2, 3), np.nan)),
        # Projections, but not of this form: scaled, skewed, turned.
        *(((0, 2, 2), 2), ((0, 2, 2), 0), ((0, 0, 1), 3), ((0, 1, 0), 3), ((0, 2, 0), 0.1), ((0, 2, 1), 0.1)),
    ],
)
def test_another_camera_is_refused(place, value):
    camera = CAMERA.copy()
    camera[place] = value
    with pytest.raises(ValueError, match=r"camera: found .* expected numbers, focal lengths above 0"):
        answer("boxes3d", boxes3d(camera=camera), fit="width")


def test_what_reaches_behind_the_camera_stays_on_its_side():
    """An object on the right, as long before the camera as behind it, is on the right of the picture."""
    camera = np.array([[[700, 0, 440, 0], [0, 700, 300, 0], [0, 0, 1, 0]]])
    (box,) = enclosing(camera, np.array([[[5, 1, 0]]]), np.array([[[1, 1, 4]]]), np.array([[np.pi / 2]]))[0]
    assert np.isfinite(box).all()
    assert 440 < box[0] < box[2]


def test_the_originals_boxes_in_space(shared):
    """Each row of the reference from the peak that it was made of."""
    facts = reference.detections(shared, "ddd_dla_34_bare", PICTURE)
    rows = np.array(facts["detections"])
    column = {name: rows[:, index] for index, name in enumerate(facts["columns"])}
    size, frame_size = (600, 906), tuple(facts["input"])
    centre = np.stack([column["centre_x"], column["centre_y"]], axis=-1)
    scale = frame_size[1] / size[1]
    there = (centre - [size[1] / 2, size[0] / 2]) * scale + [frame_size[1] / 2, frame_size[0] / 2]
    calibration = np.array([facts["calib"]], np.float32)
    tensors = {
        "centers": there[None].astype(np.float32),
        "depths": (column["Z"] + calibration[0, 2, 3])[None].astype(np.float32),
        "alphas": column["alpha"][None].astype(np.float32),
        "dimensions": np.stack([column[name] for name in "hwl"], axis=-1)[None].astype(np.float32),
        "camera": calibration,
    }
    found = answer("boxes3d", tensors, count=len(rows), size=size, frame_size=frame_size, fit="width")
    expected = np.stack([column[name] for name in "XYZ"], axis=-1)
    np.testing.assert_allclose(found["detection_locations"][0], expected, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(found["detection_rotations"][0], column["rotation_y"], atol=2e-4)
