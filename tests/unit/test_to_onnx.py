"""What the exporter writes, for every architecture, form and DCN node, and what it refuses."""

import hashlib
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import reference
import tiny
import torch

from export import checkpoint, description, graph, to_onnx, verify
from export.contract import COCO_CLASSES
from export.errors import ExportError, UsageError
from export.networks import ARCHITECTURES
from export.rewrite import to_deform_conv

SIZE = (64, 96)
DCN_LAYERS = {"dla_34": 16, "dlav0_34": 0} | {arch: 3 for arch in ARCHITECTURES if arch.startswith("resdcn")}
# Every form and every node for each architecture; all four combinations where a second form differs.
COMBINATIONS = [
    *((arch, "detector", "DCNv2") for arch in ARCHITECTURES),
    *((arch, "heads", "DeformConv") for arch in ARCHITECTURES),
    *((arch, "detector", "DeformConv") for arch in ("resdcn_18", "dla_34")),
    *((arch, "heads", "DCNv2") for arch in ("resdcn_18", "dla_34")),
]


def run(model, inputs):
    session = onnxruntime.InferenceSession(
        to_deform_conv(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: inputs})


def shape(value):
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]


def export(arch="resdcn_18", heads=tiny.HEADS, **options):
    return to_onnx.to_onnx(tiny.checkpoint(arch, heads), **{"input_size": SIZE, "top_k": 20} | options)


@pytest.mark.parametrize(("arch", "form", "dcn_op"), COMBINATIONS)
def test_every_architecture_form_and_node(arch, form, dcn_op):
    model = export(arch, form=form, dcn_op=dcn_op).model
    height, width = SIZE
    inputs = [(value.name, shape(value)) for value in model.graph.input]
    outputs = [(value.name, shape(value)) for value in model.graph.output]
    if form == "detector":
        assert inputs == [("frame", ["batch", height, width, 3])]
        assert outputs == [("boxes", ["batch", 20, 4]), ("scores", ["batch", 20]), ("classes", ["batch", 20])]
    else:
        assert inputs == [("input", ["batch", 3, height, width])]
        assert outputs == [
            (name, ["batch", tiny.HEADS[name], height // 4, width // 4]) for name in ("hm", "reg", "wh")
        ]

    operators = Counter(node.op_type for node in model.graph.node)
    assert operators[dcn_op] == DCN_LAYERS[arch]
    assert sum(operators[name] for name in ("DeformConv", "DCNv2")) == DCN_LAYERS[arch]
    assert "BatchNormalization" not in operators
    assert {entry.domain: entry.version for entry in model.opset_import}[""] >= 19
    assert_no_dead_nodes(model.graph)

    frames = verify.pictures(height, width)
    source = tiny.checkpoint(arch)
    if form == "heads":
        frames = to_onnx.Detector(source.network, top_k=20).normalise(torch.from_numpy(frames)).numpy()
        with torch.inference_mode():
            expected = source.network(torch.from_numpy(frames))
        for found, name in zip(run(model, frames), ("hm", "reg", "wh"), strict=True):
            deviation = expected[name].std().item()
            np.testing.assert_allclose(found, expected[name].numpy(), rtol=0, atol=1e-3 * max(1, deviation))
    # The answer for a picture does not depend on its batch.
    for alone, first in zip(run(model, frames[1:2]), run(model, frames), strict=True):
        np.testing.assert_allclose(alone[0], first[1], rtol=1e-4, atol=1e-4)


def assert_no_dead_nodes(graph):
    needed = {value.name for value in graph.output}
    for node in reversed(graph.node):
        assert needed & set(node.output), f"dead node {node.name}"
        needed |= set(node.input)
    assert {tensor.name for tensor in graph.initializer} <= needed


def test_dcnv2_nodes_are_the_seeds():
    model = export(form="heads", dcn_op="DCNv2").model
    nodes = [node for node in model.graph.node if node.op_type == "DCNv2"]
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in nodes:
        data, offset, mask, weight, bias = node.input
        assert {data, offset, mask}.isdisjoint(weights)
        assert weights[weight][0] == weights[bias][0]
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        assert attributes == {
            "stride": [1, 1],
            "padding": [1, 1],
            "dilation": [1, 1],
            "groups": 1,
            "deformable_group": 1,
        }
    onnx.checker.check_model(model, full_check=True)


def test_names_and_metadata_say_nothing_of_the_machine():
    model = export().model
    text = onnx.printer.to_text(model.graph) + str(model.metadata_props)
    assert ".py" not in text
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "network.layer1.0.conv1/Conv" in names
    assert "decode/TopK" in names


def test_two_exports_are_equal_to_the_byte():
    first, second = (export().model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


OTHER_HEADS = [{"hm": 3, "wh": 2}, {"hm": 3, "reg": 2, "wh": 6}, {"hm": 1, "reg": 2, "wh": 2, "id": 4}]


@pytest.mark.parametrize("heads", OTHER_HEADS)
def test_other_heads(heads):
    result = export(heads=heads)
    assert {*heads, "boxes", "scores"} == {*result.differences}
    boxes, scores, classes = run(result.model, verify.pictures(*SIZE))
    assert scores[:, 0].all()
    assert set(np.unique(classes)) <= set(range(heads["hm"]))
    assert np.isfinite(boxes).all()


def test_detections_of_the_original(shared, tmp_path):
    """A smaller frame than the reference pictures', but the original's weights: heads and boxes agree."""
    path = reference.write_checkpoint(shared, "resdcn_18", tmp_path / "x.pth")
    result = to_onnx.to_onnx(checkpoint.load(path), input_size=(128, 128))
    assert max(result.differences.values()) < 1e-3
    assert result.description.classes == list(COCO_CLASSES)


def test_command_line(tmp_path, capsys):
    source = tiny.write(tmp_path / "model.pth", "resdcn_18", classes=["coin", "note", "card"])
    output = tmp_path / "model.onnx"
    options = ["--input-size", "64x96", "--top-k", "7", "--heads", "hm=3,wh=2,reg=2"]
    to_onnx.main([str(source), str(output), *options])
    facts = json.loads(output.with_suffix(".json").read_text())
    model = onnx.load(output)
    assert facts.pop("onnx_sha256") == hashlib.sha256(output.read_bytes()).hexdigest()
    assert facts.pop("checkpoint_sha256") == checkpoint.load(source).sha256
    assert facts == {
        "arch": "resdcn_18",
        "form": "detector",
        "classes": ["coin", "note", "card"],
        "input_size": [64, 96],
        "top_k": 7,
    }
    assert description.read(model).classes == ["coin", "note", "card"]
    assert [output.name for output in model.graph.output] == ["boxes", "scores", "classes"]
    printed = capsys.readouterr()
    assert "hm: at most" in printed.out
    assert "boxes: at most" in printed.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.onnx", "model.pth"]


def test_labels_file(tmp_path):
    source = tiny.write(tmp_path / "model.pth", "resdcn_18")
    (tmp_path / "names").write_text("Münze\nbank note\ncard\n", encoding="utf-8")
    output = tmp_path / "model.onnx"
    to_onnx.main([str(source), str(output), "--input-size", "32x64", "--labels", str(tmp_path / "names")])
    assert json.loads(output.with_suffix(".json").read_text())["classes"] == ["Münze", "bank note", "card"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input-size", "100x64"], "found 100x64, expected multiples of 32"),
        (["--input-size", "0x64"], "expected multiples of 32"),
        (["--top-k", "0"], "found 0, expected 1 to 3840"),
        (["--top-k", "999999"], "found 999999, expected 1 to 3840"),
        (["--input-size", "32x32", "--top-k", "193"], "found 193, expected 1 to 192 for 3 classes"),
        (["--arch", "dla_34"], "found resdcn_18, expected dla_34"),
        (["--heads", "hm=80,reg=2,wh=2"], "found heads hm=3,reg=2,wh=2, expected hm=80,reg=2,wh=2"),
        (["--labels", "no such file"], "cannot be read"),
        (["--labels", __file__], "names, expected 3"),
    ],
)
def test_misuse(tmp_path, options, message):
    source = tiny.write(tmp_path / "model.pth", "resdcn_18")
    with pytest.raises(UsageError, match=message):
        to_onnx.main([str(source), str(tmp_path / "model.onnx"), *options])
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("options", [["--input-size", "64"], ["--heads", "hm:80"], ["--form", "boxes"]])
def test_misuse_that_argparse_sees(tmp_path, options):
    with pytest.raises(SystemExit) as end:
        to_onnx.main(["model.pth", str(tmp_path / "model.onnx"), *options])
    assert end.value.code == 2


@pytest.mark.parametrize("output", ["model.plan", "no/such/folder/model.onnx"])
def test_output_names(tmp_path, output):
    with pytest.raises(UsageError):
        to_onnx.main([str(tmp_path / "model.pth"), str(tmp_path / output)])


def test_one_line_and_exit_code(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"no checkpoint")
    for name, code in (("model.pth", 1), ("missing.pth", 2)):
        command = [sys.executable, "-m", "export.to_onnx", str(tmp_path / name), str(tmp_path / "model.onnx")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == code
        assert result.stdout == ""
        assert result.stderr.startswith(f"error: {tmp_path / name}: ")
        assert len(result.stderr.splitlines()) == 1


def smallest(node):
    for attribute in node.attribute:
        if attribute.name == "largest":
            attribute.i = 0


def spoil(model, operator, change):
    node = next(node for node in model.graph.node if node.op_type == operator)
    change(node)
    return model


@pytest.mark.parametrize(
    ("operator", "change", "message"),
    [
        ("Conv", lambda node: node.attribute.append(onnx.helper.make_attribute("x", 1)), "checker refuses"),
        ("Relu", lambda node: setattr(node, "op_type", "Tanh"), "hm differs from PyTorch's by"),
        ("TopK", smallest, "are missing or are not what the heads say"),
        ("Sub", lambda node: setattr(node, "op_type", "Add"), "are missing or are not what the heads say"),
    ],
)
def test_a_wrong_graph_is_not_written(tmp_path, monkeypatch, operator, change, message):
    """An exporter that went wrong: its own check notices, and no file appears."""
    trace = graph.trace
    monkeypatch.setattr(graph, "trace", lambda *args, **names: spoil(trace(*args, **names), operator, change))
    source = tiny.write(tmp_path / "model.pth", "resdcn_18")
    with pytest.raises(ExportError, match=message):
        to_onnx.main([str(source), str(tmp_path / "model.onnx"), "--input-size", "64x96"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_weights_that_are_no_numbers_are_refused():
    source = tiny.checkpoint("resdcn_18")
    source.network.hm[2].bias.data[0] = float("nan")
    with pytest.raises(ExportError, match="hm differs from PyTorch's by nan"):
        to_onnx.to_onnx(source, input_size=SIZE)


def test_pictures_with_and_without_scikit_image(monkeypatch):
    photographs = verify.pictures(64, 96)
    monkeypatch.setattr(verify, "find_spec", lambda name: None)
    painted = verify.pictures(64, 96)
    assert (photographs != painted).any()
    for pictures in (photographs, painted):
        assert pictures.shape == (3, 64, 96, 3)
        assert pictures.dtype == np.uint8
        assert pictures[0].std() > 20
