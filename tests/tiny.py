"""Narrow networks with weights that make their outputs vary, for tests that need no trained ones."""

from pathlib import Path

import torch
from torch import nn

from export.checkpoint import Checkpoint
from export.networks import CenterNet, create

HEADS = {"hm": 3, "reg": 2, "wh": 2}


def network(
    arch: str,
    heads: dict[str, int] = HEADS,
    *,
    seed: int = 0,
    width: float | None = None,
    stems: tuple[str, ...] = (),
) -> CenterNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = width or (0.125 if arch.startswith("resdcn") else 0.25)
        made = create(arch, heads, width=width, stems=stems)
        for name, module in made.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.8, 1.2)
                nn.init.normal_(module.bias, 0, 0.1)
            elif name.endswith("conv_offset_mask"):
                nn.init.normal_(module.bias, 0, 1)
                nn.init.normal_(module.weight, 0, 0.02)
            elif name.split(".")[0] in heads and isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.4)
    return made.eval()


def checkpoint(arch: str, heads: dict[str, int] = HEADS) -> Checkpoint:
    return Checkpoint(network(arch, heads), arch, dict(heads), None, "0" * 64)


def write(path: Path, arch: str, heads: dict[str, int] = HEADS, **beside: object) -> Path:
    torch.save({"epoch": 1, "state_dict": network(arch, heads).state_dict(), **beside}, path)
    return path
