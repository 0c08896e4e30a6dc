"""From a checkpoint's weights to a network."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from centernet_image.contract import HEADS
from torch import Tensor

from export import weights
from export.errors import ExportError, UsageError
from export.files import sha256
from export.networks import (
    ARCHITECTURES,
    HEAD_CHANNELS_IN,
    STEM_CHANNELS,
    STEMS,
    WITH_STEMS,
    CenterNet,
    create,
)
from export.tasks import format_heads
from export.weights import State

_COUNTER = "num_batches_tracked"
PLAIN = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Checkpoint:
    """A network with its weights, ready to run.

    `source` and `left_out` say which of the file's weights it has, as in `export.weights.Weights`.
    """

    network: CenterNet
    arch: str
    heads: dict[str, int]
    classes: list[str] | None
    sha256: str
    source: str = ""
    left_out: list[str] = field(default_factory=list)


def load(path: Path, *, arch: str | None = None, heads: dict[str, int] | None = None) -> Checkpoint:
    """Reads a checkpoint; architecture, width and heads are inferred from names and shapes of the weights.

    A file is a safetensors file or what `torch.save` wrote: a state dict, or dicts around one, as trainers
    write (see `export.weights`). `classes`, a list of names beside it (in safetensors: JSON in the metadata),
    is optional.

    Args:
        path: The file.
        arch: The expected architecture.
        heads: The expected channels of each output.

    Raises:
        UsageError: There is no such file, or it is not of `arch` or `heads`.
        ExportError: The file cannot be read, or its weights are of no known network, no plain floats or no
            numbers.
    """
    if not path.is_file():
        raise UsageError(f"{path}: {'found a folder, expected a' if path.is_dir() else 'no such'} file")
    found_weights = weights.load(path, [_expected_names(name) for name in ARCHITECTURES])
    classes = found_weights.classes
    # BatchNorm's counters matter to training alone, and old checkpoints lack them.
    state = {name: value for name, value in found_weights.state.items() if not name.endswith(_COUNTER)}
    arch = _check_names(path, state, arch)
    stems = [stem for stem in STEMS if arch in WITH_STEMS and f"base.{stem}_layer.0.weight" in state]
    found = _heads(path, state, arch, stems)
    if heads is not None and heads != found:
        raise UsageError(f"{path}: found heads {format_heads(found)}, expected {format_heads(heads)}")
    network = _build(path, state, arch, found, stems)
    if classes is not None and len(classes) != found.get("hm", 0):
        raise ExportError(
            f"{path}: found {len(classes)} class names, expected {found.get('hm', 0)}, hm's channels"
        )
    return Checkpoint(
        network, arch, found, classes, sha256(path), found_weights.source, found_weights.left_out
    )


@cache
def _expected_names(arch: str, stems: Sequence[str] = ()) -> set[str]:
    """Names of all weights but the heads' and BatchNorm's counters."""
    with torch.device("meta"):
        names = create(arch, {}, stems=stems).state_dict()
    return {name for name in names if not name.endswith(_COUNTER)}


def _check_names(path: Path, state: State, arch: str | None) -> str:
    """Finds the architecture, or holds the weights against the given one; drops what no output depends on."""
    found = set(state)
    expected = {name: _expected_names(name) for name in ARCHITECTURES}
    closest = max(expected, key=lambda name: len(expected[name] & found) / len(expected[name] | found))
    missing = expected[closest] - found
    if missing:
        raise ExportError(
            f"{path}: found no known architecture; the closest, {closest}, lacks {_some(missing)}; "
            f"expected one of {', '.join(ARCHITECTURES)}"
        )
    if arch is not None and arch != closest:
        raise UsageError(f"{path}: found {closest}, expected {arch}: leave out --arch")
    for name in found - expected[closest]:
        # The ImageNet classifier, which the original's dla_34 carries along if it was trained from it.
        if name.startswith("base.fc."):
            del state[name]
    return closest


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more weights"


def _heads(path: Path, state: State, arch: str, stems: Sequence[str]) -> dict[str, int]:
    # CenterFace's network ends with the heat map's sigmoid: its only convolution is the first of two layers.
    only = {f"hm.{part}": f"hm.0.{part}" for part in ("weight", "bias")}
    if {*only.values()} <= state.keys() and state["hm.0.weight"].shape[2:] == (1, 1):
        state |= {name: state.pop(other) for name, other in only.items()}
    expected = _expected_names(arch, tuple(stems))
    rest = state.keys() - expected
    heads = {}
    for name in sorted({name.split(".")[0] for name in rest}):
        for parts in (("0.weight", "0.bias", "2.weight", "2.bias"), ("weight", "bias")):
            whole = {f"{name}.{part}" for part in parts}
            if whole <= rest and re.fullmatch("[a-z_]+", name):
                heads[name] = state[f"{name}.{parts[-1]}"].numel()
                rest -= whole
                break
    if rest:
        raise ExportError(f"{path}: found weights that {arch} does not have: {_some(rest)}")
    if not heads:
        raise ExportError(f"{path}: found a backbone without heads, expected hm, wh and, mostly, reg")
    return {name: heads[name] for name in (*HEADS, *sorted(heads.keys() - set(HEADS))) if name in heads}


def _build(path: Path, state: State, arch: str, heads: dict[str, int], stems: Sequence[str]) -> CenterNet:
    head = state.get(HEAD_CHANNELS_IN.get(arch, f"{next(iter(heads))}.0.bias"))
    with torch.device("meta"):
        names = create(arch, {}).state_dict()
        stem = state[next(iter(names))]
        width = (stem.shape[0] if stem.ndim == 4 else 0) / STEM_CHANNELS[arch]
        head_channels = 0 if head is None else math.prod(head.shape[:1])
        network = create(arch, heads, width=width or 1, head_channels=head_channels, stems=stems)
    expected = network.state_dict()
    wrong = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if wrong:
        name = wrong[0]
        raise ExportError(
            f"{path}: {name} has shape {list(state[name].shape)}, expected {list(expected[name].shape)} "
            f"for {arch} of width {width:g}" + (f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else "")
        )
    missing = {name for name in expected if name not in state and not name.endswith(_COUNTER)}
    if missing:
        raise ExportError(
            f"{path}: lacks {_some(missing)}: expected all heads with one convolution, or all with two"
        )
    _check_kinds(path, {name: state[name] for name in expected if name in state})
    filled = {
        name: state[name].to(value.dtype) if name in state else torch.zeros(value.shape, dtype=value.dtype)
        for name, value in expected.items()
    }
    _check_values(path, filled)
    network.load_state_dict(filled, assign=True)
    return network.eval()


def _check_kinds(path: Path, state: State) -> None:
    """Refuses what a cast to float32 would silently make another network of."""
    for name, value in state.items():
        kind = str(value.dtype if value.layout is torch.strided else value.layout).removeprefix("torch.")
        if value.is_meta or kind not in PLAIN:
            raise ExportError(
                f"{path}: {name} is {'meta (without values)' if value.is_meta else kind}, expected one of "
                f"{', '.join(PLAIN)}: save the network as it was trained, dense and not quantized"
            )


def _check_values(path: Path, state: State) -> None:
    """Refuses what would make every output NaN, or end the process that computes with it."""
    faults = []
    for name, value in state.items():
        finite = value.isfinite()
        negative = value < 0 if name.endswith("running_var") else torch.zeros((), dtype=torch.bool)
        if not finite.all():
            faults.append(f"{name} has values that are not finite ({_count(value, ~finite)})")
        elif negative.any():
            faults.append(f"{name} has negative variances ({_count(value, negative)})")
    if faults:
        further = f"; {len(faults) - 1} more weights have such values" if len(faults) > 1 else ""
        raise ExportError(
            f"{path}: {faults[0]}{further}: the training diverged, or the file is damaged: "
            "take an earlier checkpoint"
        )


def _count(value: Tensor, wrong: Tensor) -> str:
    first = tuple(wrong.nonzero()[0].tolist())
    return f"{int(wrong.sum())} of {value.numel()}, the first {value[first].item():g} at {list(first)}"
