"""Detections held against heads: what rounding may change passes, what is wrong does not."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from export.tasks.detect import Detect
from export.verify import against_onnx, peaks

CLASSES, SIZE, TOP_K = 5, (24, 32), 40
FP32 = {"score": 1e-3, "box_px": 0.1}
FP16 = {"score": 0.02, "box_px": 2}


def make_heads(*, pictures=3, wh=2, reg=True, gain=1.0, seed=0):
    """Smooth maps with peaks, logits of some +-4 at gain 1; 100 of them saturate the sigmoid."""
    rng = np.random.default_rng(seed)

    def maps(channels, scale, shift=0.0):
        noise = rng.normal(0, 1, (pictures, channels, *SIZE))
        smooth = np.array([[cv2.GaussianBlur(plane, (0, 0), 0.8) for plane in each] for each in noise])
        return (scale * smooth + shift).astype(np.float32)

    heads = {"hm": maps(CLASSES, 4 * gain), "wh": maps(wh, 8, 10)}
    return heads | ({"reg": maps(2, 0.7, 0.5)} if reg else {})


def decode(heads):
    tensors = {name: torch.from_numpy(head) for name, head in heads.items()}
    outputs = Detect(TOP_K)(tensors)
    return {name: output.numpy().copy() for name, output in zip(peaks.OUTPUTS, outputs, strict=True)}


def compare(found, heads, **tolerance):
    agreement, _ = peaks.explain(found, peaks.boxes_of(heads), **tolerance)
    return agreement


def rounded(heads, relative, seed=1):
    rng = np.random.default_rng(seed)
    return {
        name: (head + relative * head.std() * rng.normal(0, 1, head.shape)).astype(np.float32)
        for name, head in heads.items()
    }


FORMS = [{}, {"wh": 2 * CLASSES}, {"reg": False}, {"gain": 100}, {"gain": 1e-4}]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("relative", "tolerance"), [(0, FP32), (1e-6, FP32), (2e-3, FP16)])
def test_rounding_passes(form, relative, tolerance):
    heads = make_heads(**form)
    agreement = compare(decode(rounded(heads, relative)), heads, **tolerance)
    assert agreement.unmatched == 0
    assert agreement.compared == 3 * TOP_K
    assert agreement.score <= tolerance["score"]
    assert agreement.box_px <= tolerance["box_px"]


def test_heads_in_fp16():
    heads = {name: head.astype(np.float16) for name, head in make_heads().items()}
    exact = {name: head.astype(np.float32) for name, head in heads.items()}
    assert compare(decode(exact), heads, **FP16).unmatched == 0


def spoil(found, heads, what):
    if what in heads:
        return decode(heads | {what: heads[what] * np.float32(1.05)})
    if what == "cell":
        found["boxes"] += np.array([4, 0, 4, 0], np.float32)
    elif what == "classes":
        found["classes"] = (found["classes"] + 1) % CLASSES
    elif what == "no classes":
        found["classes"][:] = 10 * CLASSES
    elif what == "pictures":
        found = {name: array[::-1] for name, array in found.items()}
    elif what == "one picture":
        found = {name: array[[0, 1, 1]] for name, array in found.items()}
    elif what == "halved":
        found["scores"][:, TOP_K // 2 :] = 0
    elif what == "every second":
        found = {name: np.repeat(array[:, ::2], 2, axis=1) for name, array in found.items()}
    elif what == "empty":
        found = {name: np.zeros_like(array) for name, array in found.items()}
    elif what == "nan":
        found["scores"][:] = np.nan
    return found


WRONG = ("cell", "classes", "no classes", "pictures", "one picture", "halved", "every second", "empty", "nan")


@pytest.mark.parametrize(
    ("what", "tolerance"),
    [*((what, FP32) for what in ("hm", "wh", "reg")), *((what, FP16) for what in WRONG)],
)
def test_what_is_wrong_does_not_pass(what, tolerance):
    heads = make_heads()
    agreement = compare(spoil(decode(heads), heads, what), heads, **tolerance)
    assert agreement.unmatched > 0.2


def test_saturated_heads_still_tell_boxes_and_classes_apart():
    heads = make_heads(gain=100)
    for what in ("cell", "classes", "pictures", "halved", "every second"):
        agreement = compare(spoil(decode(heads), heads, what), heads, **FP16)
        assert agreement.unmatched > 0.2, what


def test_weak_scores_are_left_alone_but_for_the_first():
    heads = make_heads()
    heads["hm"] -= 20
    agreement = compare(decode(heads), heads, **FP16)
    assert (agreement.compared, agreement.unmatched) == (3, 0)
    found = decode(heads)
    found["boxes"] += 100
    assert compare(found, heads, **FP16).unmatched == 1


@pytest.mark.parametrize(("rows", "passed"), [(4, False), (1, True)])
def test_one_class_of_many_is_not_lost_among_the_others(rows, passed):
    heads = make_heads()
    found = decode(heads)
    of_class = found["classes"] == 2
    found["boxes"][of_class & (of_class.cumsum(axis=1) <= rows)] += 100
    tolerance = dataclasses.replace(against_onnx.TOLERANCES["fp16"], unmatched=0.24)
    detections, *_ = against_onnx.compare_outputs(heads | decode(heads), found, tolerance)
    assert detections.facts["unmatched"] < tolerance.unmatched
    assert detections.passed == passed, str(detections)
