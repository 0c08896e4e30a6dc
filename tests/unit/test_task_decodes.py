"""Each task's decode against plain NumPy, cell by cell; `test_tasks.py` holds them against the original's."""

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


def row(task, heads, x, y):
    """The box and the further outputs of one peak, lengths in cells; `heads` are of one picture."""
    at = {name: head[:, y, x].astype(np.float64) for name, head in heads.items()}
    cell = np.array([x, y], np.float64)
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
