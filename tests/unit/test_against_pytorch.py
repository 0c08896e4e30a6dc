"""The exporter's check: a right network passes however much it multiplies rounding, a wrong graph never."""

from copy import deepcopy

import exported
import numpy as np
import onnx
import pytest
import tiny
import torch

from export.detector import Detector
from export.errors import ExportError
from export.graphs import torch_export
from export.verify import against_pytorch

SIZE = (64, 96)
HEADS = ("hm", "reg", "wh")


def noisy(network):
    """Makes the heat map's values small differences of large numbers, which float32 rounds to a percent."""
    with torch.no_grad():
        network.hm[0].bias += 1e5
        network.hm[2].bias -= 1e5 * network.hm[2].weight.sum((1, 2, 3))
    return network


@pytest.fixture(scope="module")
def case():
    """A detector, its graph, and pictures."""
    detector = Detector(noisy(tiny.network("resdcn_18")), top_k=20).eval()
    frames = against_pytorch.pictures(*SIZE)
    model = exported.trace(
        torch_export.fold_batch_norm(detector),
        [torch.from_numpy(frames[:2])],
        input_names=["frame"],
        output_names=["boxes", "scores", "classes", "peaks", *HEADS],
    )
    return detector, model, frames


def test_rounding_of_the_network_itself_is_no_mistake(case):
    detector, model, frames = case
    differences = against_pytorch.compare(model, detector, {"frame": frames}, HEADS)
    deviation = detector(torch.from_numpy(frames))[4].std().item()
    assert differences["hm"] > 5e-3 * deviation, "nothing to forgive"
    assert differences["wh"] < 1e-4


def test_peaks_that_are_not_the_other_outputs(case, monkeypatch):
    detector, model, frames = case
    right = against_pytorch._run_onnx

    def wrong(*given):
        return [found | {"peaks": np.roll(found["peaks"], 1, axis=2)} for found in right(*given)]

    monkeypatch.setattr(against_pytorch, "_run_onnx", wrong)
    with pytest.raises(ExportError, match="peaks does not hold boxes, scores, classes as they are"):
        against_pytorch.compare(model, detector, {"frame": frames}, HEADS)


def test_float64_is_computed_only_where_it_is_needed(case, monkeypatch):
    _, model, frames = case
    precise = []
    monkeypatch.setattr(against_pytorch, "deepcopy", lambda module: precise.append(1) or deepcopy(module))
    against_pytorch.compare(model, case[0], {"frame": frames}, ("reg", "wh"))
    assert not precise
    against_pytorch.compare(model, case[0], {"frame": frames}, HEADS)
    assert len(precise) <= 2  # one picture for each batch


def swap_heads(model):
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = {"wh": "reg", "reg": "wh"}.get(name, name)


def drop_mask(model):
    node = next(node for node in model.graph.node if node.op_type == "DeformConv")
    del node.input[4]


def scale(name, factor):
    def change(model):
        (tensor,) = (each for each in model.graph.initializer if each.name == name)
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(factor), name))

    return change


def double_stride_of_boxes(model):
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size == 1 and values.item() == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, 8), tensor.name))


def set_attribute(operator, name, value):
    def change(model):
        node = next(node for node in model.graph.node if node.op_type == operator)
        attribute = next(each for each in node.attribute if each.name == name)
        attribute.CopyFrom(onnx.helper.make_attribute(name, value))

    return change


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (swap_heads, "reg differs from PyTorch's"),
        (drop_mask, "differs from PyTorch's by .*, and from float64 by .*; expected about as much as"),
        (scale("normalise.shift", 1.05), "differs from PyTorch's"),
        (scale("network.hm.2.weight", 1.1), "hm differs"),
        (double_stride_of_boxes, "are not what the heads say"),
        (set_attribute("Conv", "strides", [1, 1]), "ONNX Runtime"),
        (set_attribute("DeformConv", "dilations", [2, 2]), "ONNX Runtime"),
    ],
)
def test_a_wrong_graph_of_a_noisy_network_is_refused(case, fault, message):
    detector, model, frames = case
    wrong = deepcopy(model)
    fault(wrong)
    assert wrong != model
    with pytest.raises(ExportError, match=message) as error:
        against_pytorch.compare(wrong, detector, {"frame": frames}, HEADS)
    assert "\n" not in str(error.value)


def test_values_that_grow_beyond_float32_are_named(case):
    """Each weight is a number, but the offsets are none: PyTorch and ONNX Runtime would read anywhere."""
    detector = Detector(tiny.network("resdcn_18"), top_k=20).eval()
    with torch.no_grad():
        detector.network.layer4[1].conv2.weight *= 1e30
        detector.network.layer4[1].bn2.weight *= 1e30
    with pytest.raises(
        ExportError, match=r"network\.deconv_layers\.0\.conv_offset_mask gives values that are"
    ):
        against_pytorch.compare(case[1], detector, {"frame": case[2]}, HEADS)


def heads(noise, *, seed):
    return noise * np.random.default_rng(seed).normal(0, 1, (2, 3, 16, 24))


TRUTH = heads(1, seed=0)


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 1e-2, 5e-2])
def test_as_far_as_pytorch_is_right(noise):
    expected, found = (TRUTH + heads(noise, seed=seed) for seed in (1, 2))
    against_pytorch._compare_head("hm", found, expected, lambda index: {"hm": TRUTH[index : index + 1]})


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 1e-2, 5e-2])
@pytest.mark.parametrize("fault", ["scaled", "one cell", "nan", "one nan", "shape"])
def test_farther_than_pytorch_is_wrong(noise, fault):
    expected, found = (TRUTH + heads(noise, seed=seed) for seed in (1, 2))
    if fault == "scaled":
        found = found * 1.3
    elif fault == "one cell":
        found[1, 2, 0, 5] += 2
    elif fault == "nan":
        found = found * np.nan
    elif fault == "one nan":
        found[0, 1, 3, 4] = np.nan
    else:
        found = found[..., 1:]
    with pytest.raises(ExportError, match="check of batch 2: ONNX Runtime's hm"):
        against_pytorch._compare_head("hm", found, expected, lambda index: {"hm": TRUTH[index : index + 1]})


def test_where_rounding_hides_everything():
    """A network whose float32 is as good as random is not called right."""
    expected = TRUTH + heads(0.5, seed=1)
    with pytest.raises(ExportError, match="rounding hides any mistake"):
        against_pytorch._compare_head(
            "hm", expected + 1, expected, lambda index: {"hm": TRUTH[index : index + 1]}
        )


def test_values_beyond_float32_are_named():
    expected = np.full((1, 1, 2, 2), np.inf, np.float32)
    with pytest.raises(ExportError, match="PyTorch's hm has values that are not finite"):
        against_pytorch._compare_head("hm", expected, expected, lambda index: {})
