"""Checkpoints of the reference data: weights rebuilt from their names."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

ARCHITECTURES = ("dla_34", "dlav0_34", "resdcn_18")
HEADS = {"hm": 80, "reg": 2, "wh": 2}


def weights(shared: Path) -> ModuleType:
    """The reference's own generator of tensors."""
    spec = importlib.util.spec_from_file_location("reference_weights", shared / "reference/weights.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys(shared: Path, arch: str) -> dict[str, list[int]]:
    return json.loads((shared / f"reference/{arch}.keys.json").read_text())


def golden(shared: Path, arch: str) -> dict[str, np.ndarray]:
    """Its heads and the like; a network without some of another's heads has the other's file."""
    with np.load(shared / f"reference/{arch.removesuffix('_bare')}.golden.npz") as file:
        return dict(file)


def state_dict(shared: Path, arch: str) -> dict[str, torch.Tensor]:
    """Weights of seed 0 with the recorded BatchNorm statistics."""
    tensor = weights(shared).tensor
    state = {
        key: torch.from_numpy(np.asarray(tensor(key, shape))) for key, shape in keys(shared, arch).items()
    }
    for name, value in golden(shared, arch).items():
        if name.removeprefix("bn/") in state:
            state[name.removeprefix("bn/")] = torch.from_numpy(value)
    return state


def write_checkpoint(shared: Path, arch: str, path: Path) -> Path:
    """Writes a checkpoint as the original's trainer does."""
    torch.save({"epoch": 1, "state_dict": state_dict(shared, arch)}, path)
    return path


def detections(shared: Path, name: str, picture: str) -> dict:
    """What the original found in a picture, and how it was asked."""
    return json.loads((shared / f"reference/{name}.{picture}.detections.json").read_text(encoding="utf-8"))
