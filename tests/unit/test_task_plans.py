"""Plans of every task, emulated by ONNX Runtime: a right one passes each time, one with a fault never."""

from functools import cache
from types import SimpleNamespace

import cv2
import exported
import family
import numpy as np
import onnx
import pytest
from centernet_image.contract import STRIDE
from onnx import numpy_helper

from export import tasks
from export.graphs import onnx_files
from export.plan import feed_dicts, lowering
from export.verify import against_onnx, peaks, rows

TOLERANCE = against_onnx.TOLERANCES["fp16"]


@cache
def made(name, seed=None):
    """A network of `family.NETWORKS`, on its way into an FP16 plan, and its decode."""
    model = exported.quickly(family.checkpoint(name, seed), input_size=family.SIZE, top_k=40).model
    network = lowering.make(model, "fp16")
    return SimpleNamespace(
        model=model, rounded=network.rounded, candidates=against_onnx.candidates_of(network.reference)
    )


def run(model, feeds):
    session = onnx_files.session(against_onnx.with_heads(model), as_written=True)
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(None, feed), strict=True)) for feed in feeds]


def jittered(model, seed):
    """Another right plan: its FP16 weights are off by as much again as rounding makes them.

    Rounding has a variance of a twelfth of the step between numbers, squared.
    """
    rng = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor)
            towards = rng.choice(np.array([-np.inf, np.inf], np.float16), values.shape)
            moved = np.where(rng.random(values.shape) < 1 / 12, np.nextafter(values, towards), values)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    return copy


def noise(model, batch):
    types = {
        tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
        for tensor in model.graph.input
    }
    sides = {
        tensor.name: [side.dim_value for side in tensor.type.tensor_type.shape.dim[1:]]
        for tensor in model.graph.input
    }
    return feed_dicts.noise({name: [batch, *shape] for name, shape in sides.items()}, types, seed=batch)


SEEDS = [None, *(pytest.param(seed, marks=pytest.mark.wide) for seed in range(5))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", family.NETWORKS)
def test_right_plans_pass(name, seed):
    network = made(name, seed)
    feeds = [noise(network.model, batch) for batch in (1, 2)]
    references = run(network.candidates.with_heads, feeds)
    for plan in (network.rounded, jittered(network.rounded, 0), jittered(network.rounded, 1)):
        for reference, actual in zip(references, run(plan, feeds), strict=True):
            expected, cells = network.candidates.split(reference, score=TOLERANCE.score)
            found = against_onnx.compare_outputs(expected, actual, TOLERANCE, cells=cells)
            assert all(difference.passed for difference in found), list(map(str, found))
            assert found[0].facts["compared"] >= len(actual["scores"])


SPREAD = {"hm": 4, "hm_hp": 4, "wh": 3, "reg": 0.5, "hps": 4, "landmarks": 4, "tracking": 4}
MIDDLE = {"hm": 0, "wh": 12, "dim": 3, "landmarks wh": 3}
UNUSED = {("rot", 0), ("rot", 4)}


def middle(name, head):
    return MIDDLE.get(f"{name} {head}", MIDDLE.get(head, 0))


@cache
def heads_of(name):
    """Smooth maps that say something in each cell: a narrow network may say the same everywhere."""
    rng = np.random.default_rng(0)
    size = [side // STRIDE for side in family.SIZE]
    # With what else the decode reads.
    (heads,) = run(made(name).candidates.with_heads, [noise(made(name).model, 2)])
    for head, channels in family.NETWORKS[name].heads.items():
        planes = rng.normal(0, 1, (2, channels, *size))
        smooth = np.array([[cv2.GaussianBlur(plane, (0, 0), 0.8) for plane in each] for each in planes])
        spread = 0.3 if (name, head) == ("landmarks", "wh") else SPREAD.get(head, 1)  # it is logarithmic
        heads[head] = (spread * smooth / smooth.std() + middle(name, head)).astype(np.float32)
    return heads


def answers(name, heads):
    return made(name).candidates.decode(heads, np.ones_like(heads["hm"], bool))


@cache
def split(name, precision):
    reference = heads_of(name) | answers(name, heads_of(name))
    expected, cells = made(name).candidates.split(reference, score=against_onnx.TOLERANCES[precision].score)
    return {output: expected[output] for output in answers(name, heads_of(name))}, cells


def compare(name, actual, precision="fp16"):
    """Of a plan that answers `actual`, where the heads are `heads_of`."""
    expected, cells = split(name, precision)
    return against_onnx.compare_outputs(expected, actual, against_onnx.TOLERANCES[precision], cells=cells)


@pytest.mark.parametrize("name", family.NETWORKS)
def test_rounding_of_heads_passes(name):
    rng = np.random.default_rng(1)
    rounded = {
        head: (values + 1e-3 * values.std() * rng.normal(0, 1, values.shape)).astype(np.float32)
        for head, values in ((head, heads_of(name)[head]) for head in family.NETWORKS[name].heads)
    }
    found = compare(name, answers(name, heads_of(name) | rounded))
    assert all(difference.passed for difference in found), list(map(str, found))
    exact = compare(name, answers(name, heads_of(name)), "fp32")
    assert [each.facts.get("unmatched", each.facts.get("beyond")) for each in exact] == [0] * len(exact)


@pytest.mark.parametrize(
    ("name", "head", "channel"),
    [
        (name, head, channel)
        for name, network in family.NETWORKS.items()
        for head, channels in network.heads.items()
        for channel in range(channels)
        if (head, channel) not in UNUSED
    ],
)
def test_a_channel_of_the_wrong_sign_is_refused(name, head, channel):
    wrong = heads_of(name)[head].copy()
    wrong[:, channel] = 2 * middle(name, head) - wrong[:, channel]
    found = compare(name, answers(name, heads_of(name) | {head: wrong}))
    assert not all(difference.passed for difference in found), list(map(str, found))


PLACES = ("boxes", "centers", "keypoints")
WRONG = {
    "a cell aside": (PLACES, lambda values: values + np.float32(STRIDE)),
    "another stride": (PLACES, lambda values: values * 2),
    "rows and columns": (["boxes"], lambda boxes: boxes[..., [1, 0, 3, 2]]),
    "classes": (["classes"], lambda classes: classes + 1),
    "scores": (["scores"], lambda scores: scores * np.float32(0.9)),
    "pictures": (None, lambda values: values[::-1]),
    "one joint": (["keypoints"], lambda points: points[..., [1, 0, *range(2, points.shape[2])], :]),
    "not normalised": (["embeddings"], lambda values: values * 3),
    "depths": (["depths"], lambda depths: depths * np.float32(1.05)),
    "displacements": (["displacements"], np.negative),
}
"""Outputs, all if none are named, and what is done to them."""


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (name, what)
        for name, network in family.NETWORKS.items()
        for what, (outputs, _) in WRONG.items()
        if outputs is None or {*outputs} & {*tasks.outputs_of(network.task)}
    ],
)
def test_wrong_answers_are_refused(name, what):
    found = answers(name, heads_of(name))
    outputs, change = WRONG[what]
    found |= {output: change(found[output]) for output in outputs or found if output in found}
    assert not all(difference.passed for difference in compare(name, found))


def test_one_joint_of_many_is_not_lost_among_the_others():
    expected = {"keypoints": np.random.default_rng(0).uniform(0, 500, (1, 50, 17, 2))}
    wrong = expected["keypoints"].copy()
    wrong[:, :30, 5] += 9
    pairs = [(0, row, row) for row in range(50)]
    part, _ = rows.beyond("keypoints", expected, {"keypoints": wrong}, pairs, relative=0.02, box_px=2)
    assert part > 0.5


def test_every_cell_is_decoded_as_its_own():
    """Also where many are equal, more than K, and beside a higher one."""
    candidates, heads = made("boxes3d").candidates, dict(heads_of("boxes3d"))
    heads["hm"] = np.round(heads["hm"] / 400, 2)
    _, cells = candidates.split(heads | answers("boxes3d", heads), score=TOLERANCE.score)
    expected = peaks.boxes_of(heads)["boxes"].reshape(cells["boxes"].shape)
    np.testing.assert_allclose(cells["boxes"], expected, atol=1e-4)
    assert cells["boxes"].shape[1] > 10 * 40
    dimensions = np.moveaxis(heads["dim"], 1, -1).reshape(2, -1, 3)  # of each class
    np.testing.assert_array_equal(cells["dimensions"], np.tile(dimensions, (1, 3, 1)))
