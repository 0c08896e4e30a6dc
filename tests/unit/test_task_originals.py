"""Every task of the family: heads and decodes equal the original's."""

import family
import numpy as np
import pytest
import reference
import torch
from centernet_image.contract import STRIDE, TASKS

from export import checkpoint, tasks

NETWORKS = {
    "multi_pose_dla_34": "keypoints",
    "multi_pose_resdcn_18": "keypoints",
    "ctdet_pascal_resdcn_18": "detect",
    "ddd_dla_34": "boxes3d",
    "ddd_dla_34_bare": "boxes3d",
    "mot_dla_34": "embeddings",
    "tracking_dla_34": "tracks",
    "tracking_amodal_dla_34": "tracks",
}
TOP_K = 20


# The others' layers are among these.
@pytest.mark.parametrize(
    "name",
    [
        *("multi_pose_resdcn_18", "ctdet_pascal_resdcn_18", "ddd_dla_34", "mot_dla_34", "tracking_dla_34"),
        *(
            pytest.param(name, marks=pytest.mark.wide)
            for name in ("multi_pose_dla_34", "ddd_dla_34_bare", "tracking_amodal_dla_34")
        ),
    ],
)
def test_heads_of_the_original(shared, tmp_path, name):
    loaded = checkpoint.load(reference.write_checkpoint(shared, name, tmp_path / "x.pth"))
    network, golden = loaded.network, reference.golden(shared, name)
    assert tasks.choose(loaded.heads, stems=network.stems) == NETWORKS[name]
    image = reference.weights(shared).image
    tensors = [image((1, 3, 160, 96), 0)]
    if network.stems:
        tensors += [image((1, 3, 160, 96), 1), np.clip(image((1, 1, 160, 96), 2) / 2, 0, 1)]
    with torch.inference_mode():
        outputs = network(*map(torch.from_numpy, tensors))
        alone = network(torch.from_numpy(tensors[0])) if network.stems else {}
    for head, found in outputs.items():
        np.testing.assert_allclose(found.numpy(), golden[f"out/{head}"], rtol=0, atol=1e-3)
    for head in alone.keys() - {"hm"}:
        np.testing.assert_allclose(alone[head].numpy(), golden[f"image_only/{head}"], rtol=0, atol=1e-3)


def decode(task, heads):
    """A task's outputs for the only picture of raw heads, by name."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(head)) for name, head in heads.items()}
    outputs = tasks.TASKS[task](TOP_K)(tensors)
    names = (tensor.name for tensor in TASKS[task].columns)
    return {name: output[0].numpy() for name, output in zip(names, outputs, strict=True)}


@pytest.fixture
def golden(shared):
    """`golden(name)`: the heads of a network, and the original's decode of them."""

    def golden(name):
        arrays = reference.golden(shared, name)
        heads, decoded = (
            {key.removeprefix(part): value for key, value in arrays.items() if key.startswith(part)}
            for part in ("out/", "decode/")
        )
        return heads, {key: value[0] for key, value in decoded.items()}

    return golden


def assert_rows(found, expected, *, boxes=True):
    """Scores, classes and boxes (in cells) are the original's; these heads have no two equal peaks."""
    x1_y1_x2_y2, scores, classes = (expected[..., :4], expected[..., 4], expected[..., -1])
    np.testing.assert_allclose(found["scores"], scores, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["classes"], classes)
    if boxes:
        np.testing.assert_allclose(found["boxes"] / STRIDE, x1_y1_x2_y2, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["multi_pose_dla_34", "multi_pose_resdcn_18"])
@pytest.mark.parametrize("refined", [True, False])
def test_key_points_of_the_original(golden, name, refined):
    heads, decoded = golden(name)
    if not refined:
        heads = {head: value for head, value in heads.items() if head not in ("hm_hp", "hp_offset")}
    dets = decoded["dets" if refined else "dets_without_refinement"]
    found = decode("keypoints", heads)
    assert_rows(found, dets)
    gaps = np.abs(found["keypoints"] / STRIDE - dets[:, 5:39].reshape(TOP_K, 17, 2)).max(2)
    assert (gaps > 1e-3).sum() <= (2 if refined else 0)
    snapped = np.abs(decoded["dets"] - decoded["dets_without_refinement"])[:, 5:39].any(1)
    assert snapped.any(), "a refinement that moves nothing shows nothing"


def test_boxes_in_space_of_the_original(golden):
    heads, decoded = golden("ddd_dla_34")
    found = decode("boxes3d", heads)
    centre, score, rot, depth, dim, wh, label = np.split(decoded["dets"], [2, 3, 11, 12, 15, 17], axis=1)
    np.testing.assert_allclose(found["scores"], score[:, 0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["classes"], label[:, 0])
    np.testing.assert_allclose(found["centers"] / STRIDE, centre, rtol=0, atol=1e-4)
    boxes = np.concatenate([centre - wh / 2, centre + wh / 2], 1)
    np.testing.assert_allclose(found["boxes"] / STRIDE, boxes, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["depths"], depth[:, 0], rtol=1e-4)
    np.testing.assert_allclose(found["dimensions"], dim, rtol=0, atol=1e-4)
    bins = rot[:, 1] > rot[:, 5]
    assert 0 < bins.sum() < TOP_K
    alphas = [
        np.arctan2(row[2], row[3]) - np.pi / 2 if first else np.arctan2(row[6], row[7]) + np.pi / 2
        for row, first in zip(rot, bins, strict=True)
    ]
    np.testing.assert_allclose(found["alphas"], alphas, rtol=0, atol=1e-4)


def test_boxes_in_space_without_boxes_in_the_picture(golden):
    heads, decoded = golden("ddd_dla_34")
    bare = {head: value for head, value in heads.items() if head not in ("wh", "reg")}
    found, expected = decode("boxes3d", bare), decoded["dets_without_wh_reg"]
    np.testing.assert_allclose(found["centers"] / STRIDE, expected[:, :2], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["boxes"], np.tile(found["centers"], 2))
    np.testing.assert_allclose(found["depths"], expected[:, 11], rtol=1e-4)


def test_embeddings_of_the_original(golden):
    heads, decoded = golden("mot_dla_34")
    found = decode("embeddings", heads)
    assert_rows(found, decoded["dets"])
    np.testing.assert_allclose(found["embeddings"], decoded["id"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found["embeddings"], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["tracking_dla_34", "tracking_amodal_dla_34"])
def test_tracks_of_the_original(golden, name):
    heads, decoded = golden(name)
    found = decode("tracks", heads)
    np.testing.assert_allclose(found["scores"], decoded["scores"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["classes"], decoded["clses"])
    np.testing.assert_allclose(found["boxes"] / STRIDE, decoded["bboxes"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found["centers"] / STRIDE, decoded["cts"])
    np.testing.assert_allclose(found["displacements"] / STRIDE, decoded["tracking"], rtol=0, atol=1e-4)


def test_sizes_below_zero_count_as_zero(golden):
    heads, _ = golden("tracking_dla_34")
    found = decode("tracks", heads | {"wh": -heads["wh"]})
    np.testing.assert_allclose(found["boxes"][:, :2], found["boxes"][:, 2:], rtol=0, atol=1e-4)


PERSON = {"place": (10, 8), "size": (16.0, 8.0)}
"""Of the drawn heads below: the cell of a person, and width and height of its box, in cells."""


@pytest.mark.parametrize(
    ("moved", "score", "snapped"),
    [
        ((1, 0), 0.2, True),
        ((0, -3), 0.2, True),
        ((1, 0), 0.1, False),  # not above the threshold
        ((4, 0), 0.2, True),  # within 0.3 of the longer side, 4.8
        ((5, 0), 0.2, False),  # in the box, but too far
        ((0, -4), 0.2, True),  # on the border of the box
        ((0, 4.5), 0.2, False),  # near, but outside of it
    ],
)
def test_each_rule_of_the_refinement(moved, score, snapped):
    heads = family.drawn_person(PERSON, joint=moved, score=score)
    found = decode("keypoints", heads)["keypoints"][0, 0] / STRIDE
    regressed = np.array(PERSON["place"], float)
    np.testing.assert_allclose(found, regressed + (moved if snapped else 0), atol=1e-5)


def test_only_the_nearest_peak_is_looked_at():
    """One just outside of the box is nearest: that another is inside, and near enough, does not count."""
    heads = family.drawn_person(PERSON, joint=(0, 4.3), score=0.5)
    other = family.drawn_person(PERSON, joint=(4.6, 0), score=0.9)
    both = heads | {"hm_hp": np.maximum(heads["hm_hp"], other["hm_hp"])}
    both["hp_offset"] = heads["hp_offset"] + other["hp_offset"]
    found = decode("keypoints", both)["keypoints"][0, 0] / STRIDE
    np.testing.assert_allclose(found, PERSON["place"], atol=1e-5)
    np.testing.assert_allclose(decode("keypoints", other)["keypoints"][0, 0] / STRIDE, (14.6, 8), atol=1e-5)
