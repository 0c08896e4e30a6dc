"""Networks of other people as plans, by TensorRT-RTX for SM86: the whole command line."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import foreign
import numpy as np
import onnx
import pytest
from engine_text import layer_types
from onnx import helper

pytestmark = pytest.mark.usefixtures("rtx")
ROOT = Path(__file__).parents[2]
NETWORKS = ROOT.parent / "shared" / "cases" / "networks"
SHAPES = {
    "open-batch-height-width": ("input", [1, 3, 64, 96], "1x3x64x64,2x3x128x192,4x3x1024x1024"),
    "kernels-1-3-7-no-bias": ("x", [1, 3, 96, 160], None),
    "video-8-offset-groups": ("lqs", [1, 5, 3, 48, 80], None),
    "flow-grid-sample": ("lqs", [1, 2, 3, 64, 64], None),
}
PRECISIONS = ("fp32", "fp16", "int8")
SLOW = ("flow-grid-sample", "int8")


def to_plan(*arguments):
    command = [sys.executable, "-m", "export.to_plan", *map(str, arguments), "--target", "SM86"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))


def build(model, folder, precision, name, shape, shapes=None, *options):
    """The plan's layers by kind and type, and what stands beside it."""
    plan = folder / "out" / "model.plan"
    arguments = ["--precision", precision, *options]
    if shapes:
        arguments += ["--shapes", f"{name}={shapes}"]
    if precision == "int8":
        np.savez(folder / "0.npz", **{name: foreign.picture(*shape)})
        arguments += ["--calibration", folder]
    done = to_plan(model, plan, *arguments)
    assert done.returncode == 0, done.stderr
    return layer_types(plan.read_bytes()), json.loads(plan.with_suffix(".json").read_text())["plan"]


@pytest.mark.parametrize(
    ("network", "precision"),
    [
        # In FP32 small ones of their kinds, below; in INT8 this one takes as long as all others together.
        pytest.param(*kind, marks=pytest.mark.wide if "fp32" in kind or kind == SLOW else ())
        for kind in product(SHAPES, PRECISIONS)
    ],
)
def test_public_networks(network, precision, tmp_path):
    path = NETWORKS / f"{network}.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}")
    layers, facts = build(path, tmp_path, precision, *SHAPES[network])
    count = sum(node.op_type == "DeformConv" for node in onnx.load(path).graph.node)
    assert sum(n for (kind, _), n in layers.items() if kind == "plugin") == count
    found = {dtype for kind, dtype in layers if kind in ("convolution", "plugin")}
    assert found <= {"fp32": {"float"}, "fp16": {"half"}, "int8": {"half", "int8"}}[precision]
    assert (precision == "int8") == ("int8" in found)
    if SHAPES[network][2]:
        assert facts["profiles"]["input"]["max"] == [4, 3, 1024, 1024]


MADE = {
    "separate": (foreign.separate, [1, 3, 64, 64], "1x3x32x32,1x3x64x64,2x3x256x256"),
    "flow": (foreign.flow, [1, 3, 32, 48], None),
    "shared": (foreign.shared, [1, 3, 64, 64], "1x3x32x32,1x3x64x64,2x3x256x256"),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("made", MADE)
def test_small_ones_of_their_kinds(made, precision, tmp_path):
    make, *shapes = MADE[made]
    layers, _ = build(foreign.save(make(), tmp_path / "model.onnx"), tmp_path, precision, "x", *shapes)
    assert sum(layers.values()) >= 3
    kind = {"fp32": "float", "fp16": "half"}.get(precision)
    assert not kind or {dtype for _, dtype in layers} == {kind}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_offsets_in_fp32(precision, tmp_path):
    model = foreign.save(foreign.separate(), tmp_path / "model.onnx")
    layers, facts = build(model, tmp_path, precision, "x", *MADE["separate"][1:], "--fp32-offsets")
    assert facts["fp32_offsets"]
    assert layers["convolution", "float"] == 1
    assert layers["plugin", {"fp16": "half"}.get(precision, precision)] == 1


def test_nodes_of_others(tmp_path):
    model = foreign.separate()
    (node,) = (each for each in model.graph.node if each.op_type == "DeformConv")
    data, weight, offset, _, mask = node.input
    node.CopyFrom(
        helper.make_node(
            "MMCVModulatedDeformConv2d", [data, offset, mask, weight], node.output, name="theirs",
            domain="mmcv", stride=[1, 1], padding=[1, 1], dilation=[1, 1], groups=1, deform_groups=1,
        )
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("mmcv", 1))
    path = foreign.save(model, tmp_path / "model.onnx")
    layers, _ = build(path, tmp_path, "fp16", "x", *MADE["separate"][1:])
    assert layers["plugin", "half"] == 1


@pytest.mark.parametrize("why", ["unknown", "silent", "range", "pattern", "nothing of a group"])
def test_what_is_refused_names_file_and_node(why, tmp_path):
    model, options = foreign.separate(), []
    (node,) = (each for each in model.graph.node if each.op_type == "DeformConv")
    if why == "unknown":
        model.graph.node[1].op_type, model.graph.node[1].name = "Curl", "curled"
        expected = "curled: found operator Curl, expected one of ONNX's or of a loaded TensorRT plugin"
    elif why == "silent":
        node.op_type = "DCN"
        del node.attribute[:]
        node.input[3:] = [node.input[4]]
        expected = "theirs: a DCN does not say its stride and padding"
    elif why == "range":
        model = foreign.separate(scale=1e6)
        norm = next(each for each in model.graph.node if each.op_type == "BatchNormalization")
        norm.op_type = "InstanceNormalization"
        del norm.input[3:]
        expected = "theirs: found values up to"
    elif why == "nothing of a group":
        np.savez(tmp_path / "0.npz", x=foreign.picture(1, 3, 64, 64))
        options = ["--precision", "int8", "--calibration", tmp_path, "--int8-groups", "upsampling"]
        expected = "found no convolution to quantize: use fp16, or choose others by --int8-groups"
    else:
        options = ["--keep-fp32", "nothing*"]
        expected = "--keep-fp32 nothing*: found no node of that name"
    path = foreign.save(model, tmp_path / "model.onnx")
    done = to_plan(path, tmp_path / "out.plan", "--shapes", "x=1x3x64x64", *options)
    assert done.returncode == 1
    assert f"error: {path}: {expected}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_a_plan_in_a_repository(tmp_path):
    """Its configuration is read off what stands beside it."""
    model = foreign.save(foreign.separate(), tmp_path / "model.onnx")
    build(model, tmp_path, "fp16", "x", *MADE["separate"][1:])
    command = [
        sys.executable,
        "-m",
        "export.to_repository",
        tmp_path / "out" / "model.plan",
        tmp_path / "repository",
    ]
    done = subprocess.run([*command, "--name", "matting"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "repository" / "matting"
    assert (folder / "1" / "model.plan").read_bytes() == (tmp_path / "out" / "model.plan").read_bytes()
    config = (folder / "config.pbtxt").read_text()
    assert "# x: 1x3x32x32 to 2x3x256x256, fastest at 1x3x64x64." in config
    assert 'platform: "tensorrt_plan"' in config
    assert "KIND_GPU" in config
    assert not (folder / "configs").exists()
    assert "LD_PRELOAD=" in done.stderr
    for name, text in (("model.onnx", "configs/cpu.pbtxt"), ("out/model.plan", "configs/cpu.pbtxt")):
        command[3] = tmp_path / name
        subprocess.run([*command, "--name", "matting"], cwd=ROOT, check=True, capture_output=True)
        assert (folder / text).is_file(), "the other variant stays"
        assert (folder / "1" / "model.plan").is_file()
        assert "max_batch_size: 2" in (folder / "config.pbtxt").read_text(), "the plan's"
        assert "max_batch_size: 2" in (folder / "configs" / "cpu.pbtxt").read_text()
