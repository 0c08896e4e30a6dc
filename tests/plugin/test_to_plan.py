"""The whole command line, with TensorRT-RTX in place of a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import exported
import numpy as np
import onnx
import pytest
from engine_text import allows_tf32, layer_types
from onnx import TensorProto, helper, numpy_helper
from pictures import encode, picture
from toolchain_of_plugin import find_tensorrt

from export.files import sha256, sha256_of_all
from export.plan.provenance import builder_sha256

ROOT = Path(__file__).parents[2]
RTX_PLUGIN = ROOT / "build" / "dcnv2" / "rtx" / "libdcnv2.so"

GROUPS = ["stem", "backbone", "offsets", "heads", "deformable"]

pytestmark = pytest.mark.usefixtures("rtx")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return exported.small(tmp_path_factory.mktemp("small"))


def to_plan(*arguments, **environment):
    command = [sys.executable, "-m", "export.to_plan", *map(str, arguments)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(encode(picture(300, 400, seed=seed)))
    return folder


@pytest.mark.parametrize("target", ["SM86", "SM120"])
@pytest.mark.parametrize(
    ("precision", "groups"), [("fp32", []), ("fp16", []), ("int8", []), ("int8", GROUPS)]
)
def test_detector(model, precision, groups, target, tmp_path, pictures):
    plan = tmp_path / "folder" / "model.plan"
    options = ["--calibration", pictures] if precision == "int8" else []
    options += ["--int8-groups", ",".join(groups)] if groups else []
    done = to_plan(model, plan, "--target", target, "--precision", precision, "--batch", "1,2,4", *options)
    assert done.returncode == 0, done.stderr
    assert plan.stat().st_size > 10_000
    facts = json.loads(plan.with_suffix(".json").read_text())
    assert {name: facts[name] for name in facts if name != "plan"} == {
        name: value
        for name, value in json.loads(model.with_suffix(".json").read_text()).items()
        if name != "onnx_sha256"
    }
    assert facts["plan"] == {
        "tensorrt": facts["plan"]["tensorrt"],
        "gpu": "",
        "compute_capability": {"SM86": "8.6", "SM120": "12.0"}[target],
        "precision": precision,
        "plugin_sha256": sha256(RTX_PLUGIN),
        "onnx_sha256": sha256(model),
        "profiles": {"frame": {"min": [1, 256, 384, 3], "opt": [2, 256, 384, 3], "max": [4, 256, 384, 3]}},
        "calibration_sha256": sha256_of_all(sorted(pictures.iterdir())) if precision == "int8" else "",
        "optimization_level": None,
        "builder_sha256": builder_sha256(),
        "keep_fp32": [],
        "fp32_offsets": False,
        "int8_groups": groups,
        "tensors": facts["plan"]["tensors"],
        "sha256": sha256(plan),
    }
    assert facts["plan"]["tensorrt"].startswith("RTX 1.")
    # A resdcn_18: the stem, 19 convolutions of the backbone, 3 of offsets and 3 of the heads; 3 of outputs.
    # The two of its last block are wide enough for INT8, and what is before them is not.
    quantized = 26 if groups else 2 if precision == "int8" else 0
    kind = {"fp32": "float", "fp16": "half", "int8": "half"}[precision]
    layers = {("convolution", kind): 29 - quantized, ("transposed", kind): 3}
    layers |= {("convolution", "int8"): quantized} if quantized else {}
    layers |= {("plugin", "int8" if groups else kind): 3}
    assert layer_types(plan.read_bytes()) == layers
    assert allows_tf32(plan.read_bytes()) == (precision != "fp32")
    assert sorted(path.name for path in plan.parent.iterdir()) == ["model.json", "model.plan"]


def test_a_plan_that_fits_is_kept(model, tmp_path):
    plan = tmp_path / "model.plan"
    options = ("--target", "SM86", "--if-needed")
    first = to_plan(model, plan, *options)
    assert first.returncode == 0, first.stderr
    assert "a plan is needed: no " in first.stderr
    written = plan.stat().st_mtime_ns
    again = to_plan(model, plan, *options)
    assert again.returncode == 0
    assert "fits: nothing to build" in again.stderr
    assert plan.stat().st_mtime_ns == written
    other = to_plan(model, plan, "--precision", "fp32", *options)
    assert "precision: the plan has 'fp16', found 'fp32'" in other.stderr
    assert plan.stat().st_mtime_ns > written


def foreign(tmp_path, *, kernel=(3, 3)):
    """A model of somebody else: opset 19, no mask, no bias, an open batch."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (8, 8, *kernel)).astype(np.float32)
    offsets = rng.normal(0, 0.1, (2 * kernel[0] * kernel[1], 8, 3, 3)).astype(np.float32)
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "offsets"], ["offset"], pads=pads),
        helper.make_node(
            "DeformConv", ["x", "weight", "offset"], ["y"], name="theirs", pads=pads, kernel_shape=kernel
        ),
    ]
    shape = ["n", 8, 16, 16]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(offsets, "offsets")],
    )
    path = tmp_path / "foreign.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def original(tmp_path):
    """A layer as the original project exports it: opset 11, DCNv2 with attributes of one number each."""
    rng = np.random.default_rng(0)
    shapes = {"packing": (27, 8, 3, 3), "packing_bias": (27,), "weight": (8, 8, 3, 3), "bias": (8,)}
    attributes = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "deformable_group": 1}
    nodes = [
        helper.make_node("Conv", ["x", "packing", "packing_bias"], ["packed"], pads=[1, 1, 1, 1]),
        helper.make_node("Split", ["packed"], ["offset", "logits"], axis=1, split=[18, 9]),
        helper.make_node("Sigmoid", ["logits"], ["mask"]),
        helper.make_node(
            "DCNv2", ["x", "offset", "mask", "weight", "bias"], ["y"], name="theirs", **attributes
        ),
    ]
    shape = ["n", 8, 16, 16]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)
            for name, shape in shapes.items()
        ],
    )
    path = tmp_path / "original.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("make", [foreign, original])
def test_model_of_others(make, precision, tmp_path):
    done = to_plan(make(tmp_path), tmp_path / "out.plan", "--target", "SM86", "--precision", precision)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.plan").stat().st_size > 10_000
    facts = json.loads((tmp_path / "out.json").read_text())
    assert list(facts) == ["plan"]
    assert facts["plan"]["plugin_sha256"] == sha256(RTX_PLUGIN)


def test_a_plan_without_its_onnx_file_is_checked(tmp_path):
    path, plan = foreign(tmp_path), tmp_path / "out.plan"
    assert to_plan(path, plan, "--target", "SM86").returncode == 0
    path.unlink()
    same = to_plan(path, plan, "--target", "SM86", "--if-needed")
    assert same.returncode == 0, same.stderr
    assert "fits: nothing to build" in same.stderr
    other = to_plan(path, plan, "--target", "SM89", "--if-needed")
    assert other.returncode == 1
    assert "does not fit (compute_capability: the plan has '8.6', found '8.9')" in other.stderr


PROGRESS = """
import io, sys
from pathlib import Path
import onnx
from rich.console import Console
from export.graphs.rewrite import to_dcnv2
from export.graphs.surgery import rewritten
from export.plan import builder, profiles

builder.load_plugin(trt, Path(sys.argv[1]), rtx=True)
model = onnx.load(sys.argv[2])
console = Console(file=io.StringIO(), force_terminal=True, width=100)
shapes = profiles.profiles(model, (1, 2, 4))
engine, _ = builder.build(trt, rewritten(model, to_dcnv2), shapes=shapes, target="SM86", console=console)
print(len(engine))
print(console.file.getvalue())
"""


def test_progress_on_a_terminal(model, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = find_tensorrt("rtx").python(PROGRESS, RTX_PLUGIN, model)
    assert done.returncode == 0, done.stderr
    size, drawn = done.stdout.split("\n", 1)
    assert int(size) > 10_000
    assert "Building engine" in drawn
    counts = [(int(done), int(steps)) for done, steps in re.findall(r"(\d+)/(\d+)", drawn)]
    assert any(done > 0 for done, _ in counts)
    assert all(done <= steps for done, steps in counts)


def test_what_tensorrt_refuses_is_one_line_and_no_file(tmp_path):
    path = foreign(tmp_path, kernel=(3, 2))  # the offsets are 18 channels for 9 taps
    model = onnx.load(path)
    model.graph.initializer[1].CopyFrom(
        numpy_helper.from_array(np.zeros((18, 8, 3, 3), np.float32), "offsets")
    )
    onnx.save(model, path)
    done = to_plan(path, tmp_path / "out.plan", "--target", "SM86")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "theirs" in done.stderr
    assert "18" in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_target_that_rtx_does_not_know(model, tmp_path):
    done = to_plan(model, tmp_path / "out.plan", "--target", "SM61")
    assert done.returncode == 1
    assert "found target SM61, expected one that TensorRT-RTX builds for: SM120" in done.stderr


def test_plugin_for_another_tensorrt(model, tmp_path):
    other = RTX_PLUGIN.parents[1] / "trt10" / "libdcnv2.so"
    done = to_plan(model, tmp_path / "out.plan", "--target", "SM86", "--plugin", other)
    assert done.returncode == 1
    assert "registered no DCNv2 version 1" in done.stderr
    missing = to_plan(model, tmp_path / "out.plan", "--target", "SM86", "--plugin", tmp_path / "no.so")
    assert missing.returncode == 1
    assert "cannot load the plugin" in missing.stderr


def test_preloaded_plugin(tmp_path):
    done = to_plan(foreign(tmp_path), tmp_path / "out.plan", "--target", "SM86", LD_PRELOAD=str(RTX_PLUGIN))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["plan"]["plugin_sha256"] == sha256(RTX_PLUGIN)
