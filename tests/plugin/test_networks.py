"""Whole networks with the plugin's nodes, as a user checks a model without a GPU: export.to_plan --target."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import exported
import family
import numpy as np
import pytest
import torch
from centernet_image.contract import TASKS
from engine_text import layer_types
from toolchain_of_plugin import ROOT, find_library, find_tensorrt

from export import tasks
from export.networks import create
from export.plan import feed_dicts


@pytest.fixture(scope="module")
def onnx_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = create(request.param, {"hm": 80, "reg": 2, "wh": 2})
    checkpoint = tmp_path_factory.mktemp(request.param) / "checkpoint.pth"
    torch.save({"state_dict": network.state_dict()}, checkpoint)
    return exported.export(checkpoint, "--input-size", "128x192")


# Of network, precision, target and batch every two are together in one of these.
PAIRS = (
    ("dla_34", "fp32", "SM86", "1"),
    ("dla_34", "fp16", "SM120", "1,8,32"),
    ("resdcn_18", "fp32", "SM120", "1,8,32"),
    ("resdcn_18", "fp16", "SM86", "1"),
)
BUILDS = [
    pytest.param(*kind, marks=() if kind in PAIRS else pytest.mark.wide)
    for kind in product(["dla_34", "resdcn_18"], ["fp32", "fp16"], ["SM86", "SM120"], ["1", "1,8,32"])
]


@pytest.mark.parametrize(("onnx_file", "precision", "target", "batch"), BUILDS, indirect=["onnx_file"])
def test_network_builds(onnx_file: Path, precision: str, target: str, batch: str, tmp_path: Path) -> None:
    plan = build(onnx_file, tmp_path, "--target", target, "--precision", precision, "--batch", batch)
    assert (tmp_path / "model.plan").stat().st_size > 1 << 20
    assert plan["precision"] == precision
    assert plan["compute_capability"] == {"SM86": "8.6", "SM120": "12.0"}[target]


@pytest.mark.parametrize(
    "onnx_file", ["dla_34", pytest.param("resdcn_18", marks=pytest.mark.wide)], indirect=True
)
def test_int8_takes_the_wide_convolutions_of_the_backbone(onnx_file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", feed_dicts.noise({"x": [128, 192, 3]}, {"x": np.uint8})["x"])
    options = ["--precision", "int8", "--calibration", str(tmp_path), "--batch", "1"]
    build(onnx_file, tmp_path, "--target", "SM86", *options)
    layers = layer_types((tmp_path / "model.plan").read_bytes())
    deformable = layers["plugin", "half"]
    assert layers["convolution", "int8"] == {3: 19, 16: 31}[deformable]
    # The stem, offsets and heads; dla_34's narrow levels.
    assert layers["convolution", "half"] == 1 + deformable + 6 + {3: 0, 16: 5}[deformable]
    assert layers["plugin", "int8"] == 0


@pytest.mark.parametrize("name", family.NETWORKS)
def test_every_task_builds(name: str, tmp_path: Path) -> None:
    size = "{}x{}".format(*family.SIZE)
    onnx_file = exported.export(family.write(tmp_path / "x.pth", name), "--input-size", size, "--top-k", "20")
    plan = build(onnx_file, tmp_path, "--target", "SM86", "--precision", "fp16", "--batch", "1,2,4")
    task = family.NETWORKS[name].task
    found = {kind: [tensor["name"] for tensor in plan["tensors"][kind]] for kind in ("inputs", "outputs")}
    assert found["inputs"] == ["frame", *(tensor.name for tensor in TASKS[task].inputs)]
    assert found["outputs"] == tasks.outputs_of(task)


def build(onnx_file: Path, folder: Path, *options: str) -> dict:
    """Makes model.plan in `folder`; returns what its description says of it."""
    find_tensorrt("rtx")
    plugin = ["--plugin", find_library("rtx")]
    command = [sys.executable, "-m", "export.to_plan", onnx_file, folder / "model.plan", *options, *plugin]
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "model.json").read_text())["plan"]
