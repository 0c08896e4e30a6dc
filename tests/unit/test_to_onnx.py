"""What the exporter writes, for every architecture, form and DCN node, and what it refuses."""

import hashlib
import json
import sys
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import reference
import tiny
import torch
from centernet_image.contract import COCO_CLASSES, HEADS
from centernet_image.description import Description
from exported import TRACE, kept_traces

from export import checkpoint, errors, to_onnx
from export.errors import ExportError, UsageError
from export.graphs import onnx_files, torch_export
from export.graphs.rewrite import to_deform_conv
from export.networks import ARCHITECTURES
from export.verify import against_pytorch

ROOT = Path(__file__).parents[2]
SIZE = (64, 96)
DEFAULTS = (to_onnx.FORMS[0], to_onnx.DCN_OPS[0])
DCN_LAYERS = {"dla_34": 16, "dlav0_34": 0, "mobilenetv2": 0} | {
    arch: 3 for arch in ARCHITECTURES if arch.startswith("resdcn")
}
ORIGINALS = ("dla_34", "dlav0_34", "resdcn_18", "resdcn_101")
# The other depths of resdcn are the same code.
COMBINATIONS = [
    *product(("dla_34", "resdcn_18"), to_onnx.FORMS, to_onnx.DCN_OPS),
    *((arch, *DEFAULTS) for arch in ("dlav0_34", "resdcn_101", "mobilenetv2")),
]
MORE = [
    pytest.param(*combination, marks=pytest.mark.wide)
    for combination in (
        *product(("dlav0_34", "resdcn_101"), to_onnx.FORMS, to_onnx.DCN_OPS),
        *((arch, *DEFAULTS) for arch in ARCHITECTURES),
    )
    if combination not in COMBINATIONS
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


@pytest.fixture(autouse=True)
def _kept_traces():
    with kept_traces():
        yield


@cache
def exported(arch, form, dcn_op):
    """The tiny network, exported once."""
    return export(arch, form=form, dcn_op=dcn_op)


@pytest.mark.parametrize(("arch", "form", "dcn_op"), [*COMBINATIONS, *MORE])
def test_every_architecture_form_and_node(arch, form, dcn_op):
    model = exported(arch, form, dcn_op).model
    height, width = SIZE
    inputs = [(value.name, shape(value)) for value in model.graph.input]
    outputs = [(value.name, shape(value)) for value in model.graph.output]
    if form == "detector":
        assert inputs == [("frame", ["batch", height, width, 3])]
        assert outputs == [
            ("boxes", ["batch", 20, 4]),
            ("scores", ["batch", 20]),
            ("classes", ["batch", 20]),
            ("peaks", ["batch", 20, 6]),
        ]
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
    assert onnx_files.description(model) == Description(
        arch=arch,
        form=form,
        classes=("class 0", "class 1", "class 2"),
        input_size=SIZE,
        top_k=20 if form == "detector" else None,
        checkpoint_sha256="0" * 64,
        inputs=tuple(name for name, _ in inputs),
        outputs=tuple(name for name, _ in outputs),
    )

    frames = against_pytorch.pictures(height, width)
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
    model = exported("resdcn_18", "heads", "DCNv2").model
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
    model = exported("resdcn_18", *DEFAULTS).model
    text = onnx.printer.to_text(model.graph) + str(model.metadata_props)
    assert ".py" not in text
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "network.layer1.0.conv1/Conv" in names
    assert "decode/TopK" in names


def test_two_exports_are_equal_to_the_byte(monkeypatch):
    first = exported("resdcn_18", *DEFAULTS)
    monkeypatch.setattr(torch_export, "trace", TRACE)  # The first's may be of another run.
    first, second = (made.model.SerializeToString(deterministic=True) for made in (first, export()))
    assert first == second


OTHER_HEADS = [{"hm": 3, "wh": 2}, {"hm": 3, "reg": 2, "wh": 6}, {"hm": 1, "reg": 2, "wh": 2, "depth": 4}]


@pytest.mark.parametrize("heads", OTHER_HEADS)
def test_other_heads(heads):
    result = export(heads=heads)
    assert {*(heads.keys() & {*HEADS}), "boxes", "scores"} == {*result.differences}
    assert_no_dead_nodes(result.model.graph)
    boxes, scores, classes, peaks = run(result.model, against_pytorch.pictures(*SIZE))
    assert scores[:, 0].all()
    assert set(np.unique(classes)) <= set(range(heads["hm"]))
    assert np.isfinite(boxes).all()
    np.testing.assert_array_equal(peaks, np.dstack([boxes, scores, classes]).astype(np.float32))


def test_detections_of_the_original(shared, tmp_path):
    """A smaller frame than the reference pictures', but the original's weights: heads and boxes agree."""
    path = reference.write_checkpoint(shared, "resdcn_18", tmp_path / "x.pth")
    result = to_onnx.to_onnx(checkpoint.load(path), input_size=(128, 128))
    assert max(result.differences.values()) < 1e-3
    assert result.description.classes == COCO_CLASSES


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
        "mean": [0.408, 0.447, 0.470],
        "std": [0.289, 0.274, 0.278],
        "task": "detect",
        "fit": "whole",
        "color": "bgr",
        "inputs": ["frame"],
        "outputs": ["boxes", "scores", "classes", "peaks"],
    }
    assert onnx_files.description(model) == Description.of(
        facts | {"checkpoint_sha256": checkpoint.load(source).sha256}
    )
    assert [output.name for output in model.graph.output] == facts["outputs"]
    printed = capsys.readouterr()
    assert "hm: at most" in printed.out
    assert "boxes: at most" in printed.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.onnx", "model.pth"]


def test_what_was_taken_and_what_looks_wrong_is_printed(tmp_path, capsys):
    state = tiny.network("resdcn_18").state_dict()
    averaged = {f"module.model.{name}": value for name, value in state.items()}
    content = {"net": state, "ema": averaged, "classes": ["coin", "note", "coin"]}
    torch.save(content, tmp_path / "x.pth")
    to_onnx.main(
        [str(tmp_path / "x.pth"), str(tmp_path / "x.onnx"), "--input-size", "64x96", "--top-k", "20"]
    )
    printed = capsys.readouterr().out
    assert "  weights: ema, prefix model.; left out: net\n" in printed
    assert "  warning: 'coin' is the name of classes 0, 2\n" in printed


def test_labels_file(tmp_path):
    source = tiny.write(tmp_path / "model.pth", "resdcn_18")
    (tmp_path / "names").write_text("\ufeffMünze\n硬币\ncard\n\n", encoding="utf-8")
    output = tmp_path / "model.onnx"
    options = ["--input-size", "64x96", "--top-k", "20", "--labels", str(tmp_path / "names")]
    to_onnx.main([str(source), str(output), *options])
    text = output.with_suffix(".json").read_text(encoding="utf-8")
    assert json.loads(text)["classes"] == ["Münze", "硬币", "card"]


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
        (["--labels", "nowhere"], "^labels: nowhere cannot be read: No such file or directory$"),
        (["--labels", sys.executable], "is no UTF-8 text: invalid .* at byte [0-9]+: save it as UTF-8$"),
        (["--labels", __file__], "name 2 of [0-9]+ is empty"),
        (["--labels", str(ROOT / "versions.json")], "is JSON, expected plain text"),
        (["--labels", str(ROOT / ".gitignore")], "labels: found [0-9]+ names, expected 3, the channels"),
        (["--mean", "0.4,0.4,0.4"], "^--mean: found numbers without --std"),
        (["--mean", "123.7,116.3,103.5", "--std", "coco"], "divide those for 0 to 255 by 255$"),
        (["--fit", "width"], "^--fit: found width, expected whole for a detector"),
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


@pytest.mark.parametrize(("name", "code"), [("model.pth", 1), ("missing.pth", 2)])
def test_one_line_and_exit_code(tmp_path, capsys, name, code):
    (tmp_path / "model.pth").write_bytes(b"no checkpoint")
    with pytest.raises(SystemExit) as end:
        errors.run(lambda: to_onnx.main([str(tmp_path / name), str(tmp_path / "model.onnx")]))
    assert end.value.code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path / name}: ")
    assert len(printed.err.splitlines()) == 1


def smallest(node):
    for attribute in node.attribute:
        if attribute.name == "largest":
            attribute.i = 0


def spoil(model, operator, change):
    node = next(node for node in model.graph.node if node.op_type == operator)
    change(node)
    return model


@pytest.mark.parametrize(
    ("step", "operator", "change", "message"),
    [
        (
            "without_outputs",
            "Conv",
            lambda node: node.attribute.append(onnx.helper.make_attribute("x", 1)),
            "checker refuses",
        ),
        ("trace", "Relu", lambda node: setattr(node, "op_type", "Tanh"), "hm differs from PyTorch's by"),
        ("trace", "TopK", smallest, "are missing or are not what the heads say"),
        (
            "trace",
            "Sub",
            lambda node: setattr(node, "op_type", "Add"),
            "are missing or are not what the heads say",
        ),
    ],
)
def test_a_wrong_graph_is_not_written(tmp_path, monkeypatch, step, operator, change, message):
    """An exporter that went wrong: its own check notices, and no file appears."""
    right = getattr(torch_export, step)
    monkeypatch.setattr(
        torch_export, step, lambda *args, **names: spoil(right(*args, **names), operator, change)
    )
    source = tiny.write(tmp_path / "model.pth", "resdcn_18")
    with pytest.raises(ExportError, match=message):
        to_onnx.main([str(source), str(tmp_path / "model.onnx"), "--input-size", "64x96", "--top-k", "20"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_weights_that_are_no_numbers_are_refused():
    source = tiny.checkpoint("resdcn_18")
    source.network.hm[2].bias.data[0] = float("nan")
    with pytest.raises(ExportError, match="PyTorch's hm has values that are not finite"):
        to_onnx.to_onnx(source, input_size=SIZE)


def test_pictures_with_and_without_scikit_image(monkeypatch):
    photographs = against_pytorch.pictures(64, 96)
    monkeypatch.setattr(against_pytorch, "find_spec", lambda name: None)
    painted = against_pytorch.pictures(64, 96)
    assert (photographs != painted).any()
    for pictures in (photographs, painted):
        assert pictures.shape == (3, 64, 96, 3)
        assert pictures.dtype == np.uint8
        assert pictures[0].std() > 20
