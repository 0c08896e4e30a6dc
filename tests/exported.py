"""ONNX files for tests, made by our own command; kept while checkpoint, exporter and packages are so."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from export.networks import create

ROOT = Path(__file__).parents[1]
CONTRACT = ROOT / "model_repository" / "centernet_preprocess" / "1" / "centernet_image"
SMALL_SIZE = (256, 384)
SMALL_CLASSES = ("ant", "🐝 蜜蜂", "सिकाडा")


def export(checkpoint: Path, *options: str) -> Path:
    """Returns `model.onnx`, with `model.json` beside it, in a folder of the cache."""
    state = hashlib.sha256(checkpoint.read_bytes())
    for option in options:  # Of a file, what is in it: its path is another one each time.
        state.update(Path(option).read_bytes() if Path(option).is_file() else option.encode() + b"\0")
    # A newer PyTorch or ONNX writes another file.
    sources = [
        ROOT / "ci" / "requirements.txt",
        # But for what only repositories are made of.
        *sorted({*(ROOT / "export").rglob("*.py")} - {*(ROOT / "export" / "repository").rglob("*.py")}),
        *sorted(CONTRACT.rglob("*.py")),
    ]
    for source in sources:
        state.update(source.read_bytes())
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "centernet-triton"
    cache = Path(os.environ.get("CENTERNET_CACHE", default)) / "tests"
    folder = cache / state.hexdigest()[:20]
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            command = [sys.executable, "-m", "export.to_onnx", checkpoint, new / "model.onnx", *options]
            subprocess.run(command, cwd=ROOT, check=True)
            # Another test run may have been quicker.
            if not folder.is_dir():
                new.rename(folder)
    return folder / "model.onnx"


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
