"""Finding a network's weights in what trainers write."""

import argparse
import json
import pathlib
import pickle
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from export.errors import ExportError

State = dict[str, Tensor]

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of a name that DataParallel, AveragedModel, torch.compile and FSDP put in, at any depth."""

_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|averaged?)(?![a-z])", re.IGNORECASE)
_TEACHER = re.compile("teacher", re.IGNORECASE)
_TRAINING = re.compile(
    r"n_averaged|num_updates|steps|.*(loss|criterion|teacher|optim|sched|metric|scaler).*|(.*_)?(ema|swa)(_.*)?",
    re.IGNORECASE,
)
"""First part of the names that a trainer keeps beside the network's own."""

_PART = re.compile(r"-\d{5}-of-(?!00001\.)(\d{5})\.|\.index\.json$")
"""How Hugging Face names the parts of a checkpoint, and their index."""

_DEPTH = 8
_scalar = np.core.multiarray.scalar  # type: ignore[attr-defined]
PLAIN_TYPES = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.WindowsPath,
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
    (pathlib.WindowsPath, "pathlib._local.WindowsPath"),
    _scalar,
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
]
"""What trainers store beside the weights, and what cannot run code: options, paths, scores."""


@dataclass(frozen=True)
class Weights:
    """What a file holds of a network.

    Attributes:
        state: The weights, by the names that the network has for them.
        source: Which of the file's weights they are, for example `ema, prefix model.`.
        left_out: What else the file holds.
        classes: Names of the classes, where the file has them.
    """

    state: State
    source: str
    left_out: list[str]
    classes: list[str] | None


@dataclass(frozen=True)
class _Candidate:
    """Weights under the keys `path` of the file, whose names begin with `prefix`."""

    path: tuple[str, ...]
    prefix: str
    state: State
    others: list[str]
    votes: int

    @property
    def label(self) -> str:
        return ".".join((*self.path, self.prefix)).removesuffix(".")

    @property
    def layers(self) -> set[str]:
        """The weights without statistics and without what only training needs."""
        return {
            name
            for name in self.state
            if name.endswith((".weight", ".bias")) and not _TRAINING.fullmatch(_first(name))
        }

    def rank(self, architectures: list[set[str]], rivals: "list[_Candidate]") -> tuple[bool, ...]:
        """The best is least: whole, no teacher, no less than a rival has, averaged."""
        whole = any(expected <= self.state.keys() for expected in architectures)
        whole &= any(name.startswith("hm.") for name in self.state)
        averaged = bool(_AVERAGE.search(self.label)) or "n_averaged" in {*self.state, *self.others}
        # MMEngine saves the average as `state_dict`, and the last step's weights in the average's place.
        swapped = self.path[-1:] == ("ema_state_dict",) and "steps" in {*self.state, *self.others}
        swapped &= any(each.path == (*self.path[:-1], "state_dict") for each in rivals)
        lacking = any(self.layers < each.layers for each in rivals)
        return not whole, bool(_TEACHER.search(self.label)), lacking, swapped, not averaged


def load(path: Path, architectures: list[set[str]]) -> Weights:
    """Reads a file and takes the weights of one network from it.

    Among several the averaged ones (EMA, SWA) are taken, which trainers evaluate: unless something is
    missing there that others have: a head, or, in an average of parameters alone, BatchNorm's statistics.

    Args:
        path: What `torch.save` wrote, or a safetensors file, whatever its name.
        architectures: The names of the weights of each known network, without its heads.

    Raises:
        ExportError: The file cannot be read, or holds no tensors under names.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise ExportError(f"{path}: found a {type(content).__name__}, expected a dict with state_dict")
    known = set().union(*architectures)
    dicts = dict(_tensor_dicts(content))
    candidates = [
        candidate
        for keys, tensors in dicts.items()
        if not any(_is_optimizer(key) for key in keys)
        for candidate in _candidates(keys, tensors, known)
    ]
    if not candidates:
        names = ", ".join(map(str, list(content)[:6]))
        raise ExportError(f"{path}: found a dict of {names}, expected a state_dict of tensors")
    most = max(candidate.votes for candidate in candidates)
    candidates = [candidate for candidate in candidates if 2 * candidate.votes >= most]
    chosen = min(candidates, key=lambda candidate: candidate.rank(architectures, candidates))

    left_out = {_beside(chosen.path, keys): None for keys in dicts if keys != chosen.path}
    left_out |= dict.fromkeys(_first(name) for name in chosen.others)
    for name in [name for name in chosen.state if name not in known and _TRAINING.fullmatch(_first(name))]:
        del chosen.state[name]
        left_out[_first(name)] = None
    prefix = f"prefix {chosen.prefix}" if chosen.prefix else ""
    source = ", ".join(filter(None, (".".join(chosen.path), prefix)))
    return Weights(chosen.state, source, list(left_out), _classes(path, content, chosen.path))


def _tensor_dicts(
    content: Mapping[Any, Any], keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every dict that holds tensors under names, in the file's order, by the keys that lead to it."""
    tensors = {
        name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    if tensors:
        yield keys, tensors
    for name, value in content.items():
        if isinstance(value, Mapping) and len(keys) < _DEPTH:
            yield from _tensor_dicts(value, (*keys, str(name)))


def _candidates(keys: tuple[str, ...], tensors: State, known: set[str]) -> Iterator[_Candidate]:
    """The networks of one state dict: all prefixes under which enough names are known."""
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in tensors}
    if len(set(names.values())) < len(names):
        names = {name: name for name in names}
    votes: Counter[str] = Counter({"": 0})
    for name in names.values():
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in known:
                votes[".".join([*parts[:start], ""]) if start else ""] += 1
    most = max(votes.values())
    prefixes = [prefix for prefix, count in votes.items() if 2 * count >= max(most, 1) or not most]
    # The longest first: what has a name within another network is not that of the network around it.
    owner = {
        name: next((each for each in sorted(prefixes, key=len, reverse=True) if plain.startswith(each)), None)
        for name, plain in names.items()
    }
    for prefix in prefixes:
        own = {plain: tensors[name] for name, plain in names.items() if owner[name] == prefix}
        state = {plain.removeprefix(prefix): value for plain, value in own.items()}
        others = [plain for plain in names.values() if plain not in own]
        yield _Candidate(keys, prefix, state, others, votes[prefix])


def _is_optimizer(key: str) -> bool:
    return "optim" in key.lower()


def _first(name: str) -> str:
    return name.split(".")[0]


def _beside(chosen: tuple[str, ...], other: tuple[str, ...]) -> str:
    """The key at which the way to `other` leaves the way to `chosen`, with those before it."""
    same = 0
    while same < min(len(chosen), len(other)) and chosen[same] == other[same]:
        same += 1
    return ".".join(other[: same + 1])


def _classes(path: Path, content: Mapping[Any, Any], keys: tuple[str, ...]) -> list[str] | None:
    """The list `classes` beside the weights; the nearest, if there are several."""
    holders = [content]
    for key in keys:
        holders.append(next(value for name, value in holders[-1].items() if str(name) == key))
    classes = next((holder["classes"] for holder in reversed(holders) if "classes" in holder), None)
    if classes is None:
        return None
    if not (isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)):
        raise ExportError(f"{path}: found classes {str(classes)[:60]}, expected a list of names")
    return list(classes)


def _read(path: Path) -> Any:
    if part := _PART.search(path.name):
        found = f"one of {int(part[1])} parts" if part[1] else "the index of the parts"
        raise ExportError(f"{path}: {found} of a checkpoint, expected the whole: merge them into one file")
    try:
        program = _program(path)
        content = None if program else _content(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle or archive may raise any
        raise ExportError(f"{path}: {_why_unreadable(path, error)}") from error
    if program:
        raise ExportError(
            f"{path}: {program}, expected a checkpoint: save the weights of the model that it was made from, "
            "with torch.save({'state_dict': model.state_dict()}, …)"
        )
    return content


def _content(path: Path) -> Any:
    if not _is_safetensors(path):
        # By its name, PyTorch would take a file for one of safetensors.
        with torch.serialization.safe_globals(PLAIN_TYPES), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    content: dict[str, Any] = {"state_dict": load_file(path)}
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
    if "classes" in metadata:
        content["classes"] = json.loads(metadata["classes"])
    return content


def _is_safetensors(path: Path) -> bool:
    """Whether it begins with the length of a header, which the format bounds, and a JSON object."""
    with path.open("rb") as file:
        length, bracket = file.read(8), file.read(1)
    return bracket == b"{" and int.from_bytes(length, "little") <= 100_000_000


def _program(path: Path) -> str | None:
    """What kind of PyTorch's archives with a program in them, rather than weights, it is, if any."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        inside = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in inside:
        return "a TorchScript archive (torch.jit.save)"
    if "archive_format" in inside or "serialized_exported_program.json" in inside:
        return "an exported program (torch.export.save, .pt2)"
    return None


def _why_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    kind = "safetensors" if _is_safetensors(path) else "PyTorch"
    if not (kind == "safetensors" or start.startswith((b"PK", b"\x80")) or tarfile.is_tarfile(path)):
        return (
            f"no PyTorch or safetensors file: found {path.stat().st_size} bytes beginning {start!r}: "
            "download it again"
        )
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        return (
            f"not a checkpoint of tensors alone{f' (it holds a {found[1]})' if found else ''}, and other "
            "objects are not loaded: save it again with torch.save({'state_dict': model.state_dict()}, …)"
        )
    reason = re.split(r"\. |\n", str(error))[0] or type(error).__name__
    return f"cannot be read as {kind} file: {reason}: is the file complete?"
