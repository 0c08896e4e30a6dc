"""Each task's decode against plain NumPy, cell by cell; `test_task_originals.py` has the original's."""

import numpy as np
import pytest
import torch
from centernet_image.contract import STRIDE, TASKS

from export import tasks

HEIGHT, WIDTH, TOP_K, PICTURES = 12, 15, 8, 2
CHANNELS = {
    "keypoints": {"hm": 2, "wh": 2, "reg": 2, "hps": 6},
    "boxes3d": {"hm": 3, "wh": 2, "reg": 2, "dep": 1, "rot": 8, "dim": 3},
    "boxes3d bare": {"hm": 3, "dep": 1, "rot": 8, "dim": 3},
    "embeddings": {"hm": 1, "wh": 4, "reg": 2, "id": 5},
    "embeddings, width and height": {"hm": 1, "wh": 2, "reg": 2, "id": 5},
    "tracks": {"hm": 2, "wh": 2, "reg": 2, "tracking": 2},
    "tracks, amodal": {"hm": 2, "wh": 2, "reg": 2, "tracking": 2, "ltrb_amodal": 4},
    "landmarks": {"hm": 1, "wh": 2, "hm_offset": 2, "landmarks": 8},
}


def random_heads(channels):
    random = np.random.default_rng(1)
    return {
        name: random.normal(0, 2, (PICTURES, count, HEIGHT, WIDTH)).astype(np.float32)
        for name, count in channels.items()
    }


def sigmoid(values):
    return 1 / (1 + np.exp(-values.astype(np.float64)))


def peaks(hm):
    """(score, class, column, row) of the best peaks of one picture, best first."""
    scores = sigmoid(hm)
    found = [
        (score, label, x, y)
        for (label, y, x), score in np.ndenumerate(scores)
        if score >= scores[label, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max()
    ]
    return sorted(found, reverse=True)[:TOP_K]


def centerface(heads, x, y):
    """What the original's `centerface_decode` makes of a peak: landmarks have the centre's offset, too."""
    landmarks = []
    centre_x, centre_y = x + heads["hm_offset"][0, y, x], y + heads["hm_offset"][1, y, x]
    width, height = (np.exp(np.float64(side)) * 4 for side in heads["wh"][:, y, x])
    for channel in range(0, len(heads["landmarks"]), 2):
        right, down = heads["landmarks"][channel : channel + 2, y, x]
        landmarks.append((centre_x + right, centre_y + down))
    left, top = centre_x - width / 2, centre_y - height / 2
    return np.array([left, top, left + width, top + height]), np.array(landmarks)


def row(task, heads, x, y):
    """The box and the further outputs of one peak, lengths in cells; `heads` are of one picture."""
    at = {name: head[:, y, x].astype(np.float64) for name, head in heads.items()}
    cell = np.array([x, y], np.float64)
    if task == "landmarks":
        box, landmarks = centerface(heads, x, y)
        return box, landmarks - at["hm_offset"]  # the original's fault, see there
    centre = cell + at.get("reg", 0.5)
    around = np.concatenate([centre, centre])
    size = at.get("wh", np.zeros(2))
    box = around + np.concatenate([-size, size]) / 2 if len(size) == 2 else None
    if task == "keypoints":
        return box, cell + at["hps"].reshape(-1, 2)
    if task == "boxes3d":
        _, first, sin_1, cos_1, _, second, sin_2, cos_2 = at["rot"]
        near, far = np.arctan2(sin_1, cos_1) - np.pi / 2, np.arctan2(sin_2, cos_2) + np.pi / 2
        depth = 1 / (sigmoid(at["dep"][0]) + 1e-6) - 1
        return box, centre, depth, near if first > second else far, at["dim"]
    if task == "embeddings":
        if box is None:
            left, top, right, bottom = size
            box = around + np.array([-left, -top, right, bottom])
        return box, at["id"] / np.linalg.norm(at["id"])
    if "ltrb_amodal" in at:
        return np.concatenate([cell, cell]) + at["ltrb_amodal"], cell, at["tracking"]
    size = np.maximum(size, 0)
    return around + np.concatenate([-size, size]) / 2, cell, at["tracking"]


IN_CELLS = ("boxes", "keypoints", "centers", "displacements")


@pytest.mark.parametrize("name", CHANNELS)
def test_equals_plain_numpy(name):
    task = name.split(" ")[0].rstrip(",")
    heads = random_heads(CHANNELS[name])
    decode = tasks.TASKS[task](TOP_K)
    names = [tensor.name for tensor in TASKS[task].columns]
    tensors = {head: torch.from_numpy(values) for head, values in heads.items()}
    found = dict(zip(names, (output.numpy() for output in decode(tensors)), strict=True))
    for picture in range(PICTURES):
        own = {head: values[picture] for head, values in heads.items()}
        best = peaks(own["hm"])
        assert len(best) == TOP_K
        for index, (score, label, x, y) in enumerate(best):
            assert found["scores"][picture, index] == pytest.approx(score, abs=1e-6)
            assert found["classes"][picture, index] == label
            box, *further = row(task, own, x, y)
            for output, value in zip(("boxes", *names[3:]), (box, *further), strict=True):
                scale = STRIDE if output in IN_CELLS else 1
                np.testing.assert_allclose(
                    found[output][picture, index], np.asarray(value) * scale, rtol=1e-4, atol=1e-4
                )


def encoded(box, points, size):
    """The targets of CenterFace.pytorch's dataset for one face, in cells, as heads of maps of a size."""
    (x1, y1, x2, y2), (height, width) = box, size
    centre = (x1 + x2) / 2, (y1 + y2) / 2
    x, y = map(int, centre)
    heads = {
        "hm": np.full((1, 1, height, width), -9, np.float32),
        "wh": np.zeros((1, 2, height, width), np.float32),
        "hm_offset": np.zeros((1, 2, height, width), np.float32),
        "landmarks": np.zeros((1, 2 * len(points), height, width), np.float32),
    }
    heads["hm"][0, 0, y, x] = 3
    heads["wh"][0, :, y, x] = np.log((x2 - x1) / 4), np.log((y2 - y1) / 4)
    heads["hm_offset"][0, :, y, x] = centre[0] - x, centre[1] - y
    for index, point in enumerate(points):
        heads["landmarks"][0, 2 * index : 2 * index + 2, y, x] = point[0] - x, point[1] - y
    return heads, (x, y)


def test_a_face_as_it_is_trained_comes_back():
    """And as the original decodes it, it would not: by the offset of the centre, here 0.75 and 0.5 cells."""
    box = np.array([3.5, 2, 12, 9])
    points = np.array([[6, 4], [9.5, 4.25], [7.75, 6], [6.25, 8], [9, 7.5]])
    heads, cell = encoded(box, points, (HEIGHT, WIDTH))
    decode = tasks.TASKS["landmarks"](TOP_K)
    boxes, scores, _, keypoints = decode({name: torch.from_numpy(head) for name, head in heads.items()})
    assert scores[0, 0] > 0.9
    np.testing.assert_allclose(boxes[0, 0] / STRIDE, box, atol=1e-5)
    np.testing.assert_allclose(keypoints[0, 0] / STRIDE, points, atol=1e-5)
    theirs_box, theirs = centerface({name: head[0] for name, head in heads.items()}, *cell)
    np.testing.assert_allclose(theirs_box, box, atol=1e-5)
    np.testing.assert_allclose(theirs - points, [[0.75, 0.5]] * 5, atol=1e-5)
