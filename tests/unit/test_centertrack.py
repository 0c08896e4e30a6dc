"""CenterTrack's further networks: no heat of the frame before, boxes by their sides, whole objects."""

import json

import cv2
import exported
import family
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import torch
from centernet_image.contract import STRIDE, TASKS

from clients import local
from export import checkpoint, tasks
from export.graphs import onnx_files
from export.plan import feed_dicts, lowering

RNG = np.random.default_rng(3)
SHAPE = (5, 7)


def decode(task, channels):
    """A task's outputs by name, of random heads; the heads; row and column of each peak."""
    heads = {name: torch.from_numpy(RNG.normal(size=(1, count, *SHAPE))) for name, count in channels.items()}
    outputs = tasks.TASKS[task](4)({name: head.float() for name, head in heads.items()})
    names = (tensor.name for tensor in TASKS[task].columns)
    found = {name: output[0].numpy() for name, output in zip(names, outputs, strict=True)}
    cells = [divmod(int(heads["hm"][0].flatten().sub(logit).abs().argmin()), SHAPE[1])
             for logit in torch.logit(torch.from_numpy(found["scores"]))]  # fmt: skip
    return found, {name: head[0].numpy() for name, head in heads.items()}, cells


def test_the_whole_objects_centre_is_beside_its_boxs():
    bare = {"hm": 1, "wh": 2, "reg": 2, "dep": 1, "rot": 8, "dim": 3}
    found, heads, cells = decode("boxes3d", bare | {"amodel_offset": 2})
    for box, center, (row, column) in zip(found["boxes"], found["centers"], cells, strict=True):
        own = np.array([column, row]) + heads["reg"][:, row, column]
        np.testing.assert_allclose((box[:2] + box[2:]) / 2, STRIDE * own, atol=1e-4)
        whole = own + heads["amodel_offset"][:, row, column]
        np.testing.assert_allclose(center, STRIDE * whole, atol=1e-4)


@pytest.mark.parametrize("sides", [{"ltrb": 4}, {"ltrb": 4, "ltrb_amodal": 4}])
def test_sides_take_the_place_of_sizes(sides):
    channels = {"hm": 1, "wh": 2, "reg": 2, "tracking": 2} | sides
    found, heads, cells = decode("tracks", channels)
    assert tasks.TASKS["tracks"].channels(channels).keys() == {list(sides)[-1], "tracking"}
    for box, (row, column) in zip(found["boxes"], cells, strict=True):
        own = np.array([column, row] * 2) + heads[list(sides)[-1]][:, row, column]
        np.testing.assert_allclose(box, STRIDE * own, atol=1e-4)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Of a network that reads the frame before, but no heat."""
    path = tmp_path_factory.mktemp("frames") / "frames.pth"
    network = tiny.network("dla_34", {"hm": 2, "wh": 2, "tracking": 2}, stems=("pre_img",))
    torch.save({"state_dict": network.state_dict()}, path)
    return path


@pytest.mark.parametrize(
    ("form", "inputs"),
    [("detector", ["frame", "previous_frame"]), ("heads", ["input", "previous_input"])],
)
def test_a_network_without_the_heat(file, tmp_path, form, inputs):
    """It is exported with what it reads; calibration and comparison feed it, and a plan's graph has it."""
    result = exported.quickly(checkpoint.load(file), form=form, input_size=family.SIZE, top_k=20)
    assert [tensor.name for tensor in result.model.graph.input] == inputs
    assert list(onnx_files.description(result.model).inputs) == inputs
    assert json.loads(result.description.to_json())["inputs"] == inputs
    cv2.imwrite(str(tmp_path / "a.png"), RNG.integers(0, 256, (40, 60, 3), np.uint8))
    assert feed_dicts.is_own(result.model)
    (feed,) = feed_dicts.from_pictures(result.model, [tmp_path / "a.png"])
    assert list(feed) == inputs
    made = lowering.make(result.model, "fp16")
    answers = [
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, given)[0]
        for model, given in (
            (result.model, feed),
            (result.model, feed | {inputs[1]: feed[inputs[0]]}),
            (made.rounded, feed),
        )
    ]
    assert np.abs(answers[0] - answers[1]).max() > 1e-2, "the frame before counts"
    assert answers[2].shape == answers[0].shape


def test_no_server_is_needed_for_it(file, tmp_path):
    result = exported.quickly(checkpoint.load(file), input_size=family.SIZE, top_k=20)
    onnx.save(result.model, tmp_path / "model.onnx")
    (tmp_path / "model.json").write_text(result.description.to_json(), encoding="utf-8")
    picture = cv2.imencode(".png", RNG.integers(0, 256, (40, 60, 3), np.uint8))[1].tobytes()
    (found,) = local.of_file(tmp_path / "model.onnx").detect_each([picture], threshold=0.0)
    assert len(found.tracks) == 20
