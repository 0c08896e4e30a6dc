"""ONNX files and graphs of our own exporter; kept while it, what it was given and its packages are so."""

import contextlib
import fcntl
import hashlib
import inspect
import io
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from unittest import mock

import onnx
import torch
from torch import nn

from export import to_onnx
from export.checkpoint import Checkpoint
from export.graphs import torch_export
from export.networks import create

ROOT = Path(__file__).parents[1]
CONTRACT = ROOT / "model_repository" / "centernet_preprocess" / "1" / "centernet_image"
SMALL_SIZE = (256, 384)
SMALL_CLASSES = ("ant", "🐝 蜜蜂", "सिकाडा")
TRACE = torch_export.trace


def export(checkpoint: Path, *options: str) -> Path:
    """Returns `model.onnx`, with `model.json` beside it, in a folder of the cache."""
    # Of a file, what is in it: its path is another one each time.
    given = [Path(option).read_bytes() if Path(option).is_file() else option.encode() for option in options]

    def make(folder: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            to_onnx.main([str(checkpoint), str(folder / "model.onnx"), *options])

    return _kept([checkpoint.read_bytes(), *given], make) / "model.onnx"


def trace(
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> onnx.ModelProto:
    """In place of `torch_export.trace`, which takes most of an export's time.

    It depends on the module's weights and attributes and on the code of both, but not on patches of that.
    """
    content = io.BytesIO()
    _Content(content).dump((module, list(examples), list(input_names), list(output_names)))
    classes = {type(part) for part in module.modules()}
    code = sorted({inspect.getfile(each) for each in classes})

    def make(folder: Path) -> None:
        model = TRACE(module, examples, input_names=input_names, output_names=output_names)
        onnx.save(model, folder / "model.onnx")

    parts = [b"trace", content.getvalue(), *(Path(file).read_bytes() for file in code)]
    return onnx.load(_kept(parts, make) / "model.onnx")


@contextlib.contextmanager
def kept_traces() -> Iterator[None]:
    """Exports within need not trace what has been traced before; all else of them is done again."""
    with mock.patch.object(torch_export, "trace", trace):
        yield


def quickly(source: Checkpoint, **options: object) -> to_onnx.Export:
    """As `to_onnx.to_onnx`, with a trace that may be kept."""
    with kept_traces():
        return to_onnx.to_onnx(source, **options)


class _Content(pickle.Pickler):
    """Tensors by their values: as PyTorch pickles them, their addresses are among the bytes."""

    def reducer_override(self, value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        array = value.detach().numpy()
        return bytes, (f"{array.dtype} {array.shape} ".encode() + array.tobytes(),)


@cache
def _exporter() -> bytes:
    """A checksum of the exporter and of its packages: a newer PyTorch or ONNX writes another file."""
    sources = [
        ROOT / "ci" / "requirements.txt",
        # But for what only repositories are made of.
        *sorted({*(ROOT / "export").rglob("*.py")} - {*(ROOT / "export" / "repository").rglob("*.py")}),
        *sorted(CONTRACT.rglob("*.py")),
    ]
    return _checksum([source.read_bytes() for source in sources])


def _checksum(parts: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _kept(parts: Sequence[bytes], make: Callable[[Path], None]) -> Path:
    """The folder of the cache that `make` fills, unless one for the same `parts` is there."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "centernet-triton"
    kept = Path(os.environ.get("CENTERNET_CACHE", default)) / "tests"
    folder = kept / _checksum([_exporter(), *parts]).hex()[:20]
    if folder.is_dir():
        return folder
    kept.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Another process may be at it.
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=kept) as scratch:
                new = Path(scratch) / "new"
                new.mkdir()
                make(new)
                new.rename(folder)
    folder.with_suffix(".lock").unlink(missing_ok=True)
    return folder


def small(folder: Path) -> Path:
    """A narrow resdcn_18 with random weights, three classes and a frame that is not square.

    Its answers depend strongly on the picture, and most of its scores are above the default threshold.
    """
    torch.manual_seed(0)
    network = create("resdcn_18", {"hm": 3, "reg": 2, "wh": 2}, width=1 / 8)
    for name, std in {"hm.0": 0.5, "hm.2": 15.0, "wh.0": 0.5, "wh.2": 100.0}.items():
        torch.nn.init.normal_(network.get_parameter(f"{name}.weight"), std=std)
    state = network.state_dict()
    state["hm.2.bias"] = torch.zeros(3)
    state["wh.2.bias"] = torch.full((2,), 12.0)
    checkpoint, labels = folder / "small.pth", folder / "labels.txt"
    torch.save({"state_dict": state}, checkpoint)
    labels.write_text("\n".join(SMALL_CLASSES) + "\n", encoding="utf-8")
    return export(checkpoint, "--input-size", "{}x{}".format(*SMALL_SIZE), "--labels", str(labels))
