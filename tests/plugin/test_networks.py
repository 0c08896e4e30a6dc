"""Whole networks with the plugin's nodes, as a user checks a model without a GPU: export.to_plan --target."""

import json
import os
import subprocess
import sys
from pathlib import Path

import exported
import pytest
import torch
from toolchain_of_plugin import ROOT, find_library, find_tensorrt

from export.networks import create


@pytest.fixture(scope="module", params=["dla_34", "resdcn_18"])
def onnx_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = create(request.param, {"hm": 80, "reg": 2, "wh": 2})
    checkpoint = tmp_path_factory.mktemp(request.param) / "checkpoint.pth"
    torch.save({"state_dict": network.state_dict()}, checkpoint)
    return exported.export(checkpoint, "--input-size", "128x192")


@pytest.mark.parametrize("batch", ["1", "1,8,32"], ids=["static", "dynamic"])
@pytest.mark.parametrize("target", ["SM86", "SM120"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_network_builds(onnx_file: Path, precision: str, target: str, batch: str, tmp_path: Path) -> None:
    find_tensorrt("rtx")
    library = find_library("rtx")
    options = ["--target", target, "--precision", precision, "--batch", batch, "--plugin", library]
    command = [sys.executable, "-m", "export.to_plan", onnx_file, tmp_path / "model.plan", *options]
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "model.plan").stat().st_size > 1 << 20
    plan = json.loads((tmp_path / "model.json").read_text())["plan"]
    assert plan["precision"] == precision
    assert plan["compute_capability"] == {"SM86": "8.6", "SM120": "12.0"}[target]
