"""Networks to measure: exported from a checkpoint, or from random weights where there is none."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from centernet_image import contract

ROOT = Path(__file__).resolve().parents[1]
NETWORK = "centernet_network"


def export(network: str, work_dir: Path, input_size: tuple[int, int] = contract.INPUT_SIZE) -> Path:
    """Make a network's ONNX file and the description beside it, unless they are there and as new.

    Args:
        network: A checkpoint's path, or an architecture, which gets the random weights of
            `benchmarks.weights` unless its checkpoint is in `work_dir`.
        work_dir: Where NAME.onnx and NAME.json are kept, and NAME.pth of an architecture.
        input_size: Height and width of its frames.

    Raises:
        ExportError: It could not be exported.
    """
    checkpoint = Path(network)
    if not checkpoint.suffix:
        checkpoint = work_dir / f"{network}.pth"
        if not checkpoint.exists():
            from benchmarks.weights import make_checkpoint

            make_checkpoint(network, checkpoint, input_size=input_size)
    onnx = work_dir / f"{checkpoint.stem}.onnx"
    if not onnx.exists() or onnx.stat().st_mtime < checkpoint.stat().st_mtime:
        from export import to_onnx  # needs PyTorch, which nothing else here does

        work_dir.mkdir(parents=True, exist_ok=True)
        to_onnx.main([str(checkpoint), str(onnx), "--input-size", "{}x{}".format(*input_size)])
    return onnx


def repository(network: Path, folder: Path) -> Path:
    """Make `folder` a copy of the model repository that serves this ONNX file or plan."""
    ignore = shutil.ignore_patterns("model.onnx*", "model.plan*", "model.json", "__pycache__")
    shutil.copytree(ROOT / "model_repository", folder, symlinks=True, ignore=ignore)
    for suffix in (network.suffix, ".json"):
        link = folder / NETWORK / "1" / f"model{suffix}"
        link.symlink_to(network.with_suffix(suffix).resolve())
    return folder


def change(text: str) -> str:
    """An argparse type: `MODEL:TEXT`, where TEXT is a part of a model's configuration."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    model, _, part = text.partition(":")
    try:
        text_format.Parse(part, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected MODEL:TEXT: {error}") from error
    if not (ROOT / "model_repository" / model / "config.pbtxt").is_file():
        raise argparse.ArgumentTypeError(f"found {model!r}, expected a model of the repository")
    return text


def changed(repository: Path, changes: Sequence[str], folder: Path) -> Path:
    """A copy of a model repository with changed configurations; itself, if nothing is to be changed.

    `instance_group` is replaced as a whole; a map, such as `parameters`, and a message, such as
    `dynamic_batching`, keep what the change does not mention.
    """
    if not changes:
        return repository
    # Not with the file: networks are also made where there is no client.
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    shutil.copytree(repository, folder, symlinks=True)
    for text in changes:
        model, _, part = text.partition(":")
        given = text_format.Parse(part, model_config_pb2.ModelConfig())
        for path in (folder / model).rglob("*.pbtxt"):
            config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
            if given.instance_group:
                config.ClearField("instance_group")
            config.MergeFrom(given)
            path.write_text(text_format.MessageToString(config), encoding="utf-8")
    return folder
