"""The comparison of a plan's detections and raw outputs with the network's."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from polygraphy.backend.onnxrt import OnnxrtRunner

from export.verify import against_onnx

TOLERANCE = against_onnx.Tolerance(relative=1e-2, score=0.02, box_px=2, unmatched=0.05)


def multiplied(factor):
    """A model that multiplies its input."""
    values = onnx.numpy_helper.from_array(np.float32([factor]), "factor")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "g", *zip(tensors), [values])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def found(seed=0, count=50):
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.uniform(0.1, 0.9, (2, count)).astype(np.float32))[:, ::-1]
    return {
        "boxes": rng.uniform(0, 500, (2, count, 4)).astype(np.float32),
        "scores": scores,
        "classes": rng.integers(0, 5, (2, count)).astype(np.int32),
    }


def compare(expected, actual):
    (difference,) = against_onnx.compare_outputs(expected, actual, TOLERANCE)
    return difference


def test_equal_detections_match():
    difference = compare(found(), found())
    assert difference.passed
    assert difference.facts["unmatched"] == 0
    assert difference.facts["compared"] > 80


def test_order_does_not_matter():
    order = np.append(np.random.default_rng(1).permutation(49), 49)
    shuffled = {name: array[:, order] for name, array in found().items()}
    assert compare(found(), shuffled).facts["unmatched"] == 0


def test_the_tail_may_be_another():
    other = found()
    other["boxes"][:, -1] += 300
    assert compare(found(), other).passed


@pytest.mark.parametrize("what", ["boxes", "scores", "classes", "nan", "doubled"])
def test_other_detections_do_not_match(what):
    other = found()
    if what == "boxes":
        other["boxes"][:, ::3, 0] += 3
    elif what == "scores":
        other["scores"] = other["scores"] - 0.1
    elif what == "classes":
        other["classes"] += 1
    elif what == "nan":
        other["scores"] = np.full_like(other["scores"], np.nan)
    else:  # one box in place of all
        other["boxes"] = np.repeat(other["boxes"][:, :1], 50, 1)
        other["classes"] = np.repeat(other["classes"][:, :1], 50, 1)
    difference = compare(found(), other)
    assert not difference.passed
    assert "beyond tolerance" in str(difference)


def test_ties_alone_prove_nothing():
    tied = found() | {"scores": np.full((2, 50), 0.5, np.float32)}
    difference = compare(tied, tied)
    assert not difference.passed
    assert str(difference).endswith("compared 0 - nothing to tell apart: more pictures")
    raw = {"features": np.ones((2, 3), np.float32)}
    assert all(each.passed for each in against_onnx.compare_outputs(tied | raw, tied | raw, TOLERANCE))


def test_models_without_heads_stay_as_they_are():
    model = multiplied(1)
    assert against_onnx.with_heads(model) is model


def test_raw_outputs_are_compared_by_their_range():
    expected = {"hm": np.linspace(-10, 10, 100, dtype=np.float32)[None]}
    (good,) = against_onnx.compare_outputs(expected, {"hm": expected["hm"] + 0.05}, TOLERANCE)
    (bad,) = against_onnx.compare_outputs(expected, {"hm": expected["hm"] + 0.2}, TOLERANCE)
    (nan,) = against_onnx.compare_outputs(expected, {"hm": expected["hm"] * np.nan}, TOLERANCE)
    assert [good.passed, bad.passed, nan.passed] == [True, False, False]


def scaled(factor):
    session = onnxruntime.InferenceSession(
        multiplied(factor).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return OnnxrtRunner(session)


@pytest.mark.parametrize(
    ("actual", "rounded", "passed"),
    [
        (1.005, 1.5, True),
        (1.05, 1.001, False),
        (1.05, 1.03, True),
        (1.07, 1.03, False),
        (2.0, 1.9, False),  # so much rounding excuses nothing
        (float("nan"), 1.03, False),
        (1.05, float("nan"), False),
    ],
)
def test_what_a_precision_cannot_keep_is_not_asked_of_the_plan(actual, rounded, passed):
    asked = []

    def third():
        asked.append(rounded)
        return scaled(rounded)

    feeds = [{"x": np.float32([[1, 2, 3, 4]] * size)} for size in (1, 3)]
    found = against_onnx.compare_runners(scaled(1), scaled(actual), feeds, TOLERANCE, rounded=third)
    assert [difference.passed for difference in found] == [passed] * 2
    assert [difference.batch for difference in found] == [1, 3]
    assert bool(asked) == (actual != 1.005), "asked only where it is needed"


class Recorded:
    """A runner that answers what is written down, input by input."""

    def __init__(self, *answers):
        self._answers = iter(answers)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        pass

    def infer(self, _feed):
        return next(self._answers)


@pytest.mark.parametrize(
    ("wanted", "actual", "passed"),
    [
        (("tied", "clear"), ("tied", "clear"), True),
        (("tied", "tied"), ("tied", "tied"), False),
        (("clear", "clear"), ("tied", "clear"), False),
        (("tied", "clear"), ("tied", "shifted"), False),
    ],
)
def test_an_input_that_shows_nothing_is_made_up_for(wanted, actual, passed):
    answers = {"clear": found(), "tied": found() | {"scores": np.full((2, 50), 0.5, np.float32)}}
    answers["shifted"] = found() | {"boxes": found()["boxes"] + 100}
    runners = (Recorded(*(answers[name] for name in each)) for each in (wanted, actual))
    differences = against_onnx.compare_runners(*runners, [{}, {}], TOLERANCE)
    assert all(difference.passed for difference in differences) == passed


def test_detections_that_a_precision_cannot_keep():
    rounded, worse = found(), found()
    rounded["boxes"][:, ::10, 0] += 3
    worse["boxes"][:, ::7, 0] += 3
    wrong = {
        name: np.roll(values, 1, axis=1) if name == "classes" else values for name, values in found().items()
    }
    assert not compare(found(), worse).passed
    for actual, passed in ((worse, True), (wrong, False)):
        (difference,) = against_onnx.compare_outputs(found(), actual, TOLERANCE, rounded=rounded)
        assert difference.passed == passed
