"""CenterNet checkpoint to ONNX file: `python -m export.to_onnx CHECKPOINT OUT.onnx`."""

import argparse
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from centernet_image.contract import (
    BOXES,
    CLASSES,
    COCO,
    COCO_CLASSES,
    FRAME,
    HEADS,
    INPUT_SIZE,
    RAW_INPUT,
    SCORES,
    SIDE_MULTIPLE,
    STRIDE,
    TOP_K,
    Normalisation,
)
from centernet_image.description import Description
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import nn

from export import checkpoint, labels, normalisation
from export.detector import Detector, RawHeads
from export.errors import ExportError, UsageError, run
from export.files import write_together
from export.graphs import torch_export
from export.graphs.rewrite import to_dcnv2
from export.verify import against_pytorch

FORMS = ("detector", "heads")
DCN_OPS = ("DeformConv", "DCNv2")
MAX_TOP_K = 3840
"""TensorRT's limit."""


@dataclass(frozen=True)
class Export:
    """An exported and checked network."""

    model: onnx.ModelProto
    description: Description
    differences: against_pytorch.Differences


def to_onnx(
    source: checkpoint.Checkpoint,
    *,
    form: str = "detector",
    dcn_op: str = "DeformConv",
    input_size: tuple[int, int] = INPUT_SIZE,
    top_k: int = TOP_K,
    classes: list[str] | None = None,
    normalisation: Normalisation = COCO,
    progress: Callable[[str], None] = lambda step: None,
) -> Export:
    """Exports a network and checks the result.

    Args:
        source: The network.
        form: `detector`: uint8 BGR `frame` [N, H, W, 3] in; `boxes` [N, K, 4], `scores` [N, K] and `classes`
            [N, K] out. `heads`: normalised float `input` [N, 3, H, W] in; raw `hm`, `reg`, `wh` out.
        dcn_op: The node of a deformable convolution: the standard `DeformConv`, or `DCNv2`.
        input_size: Height and width, pixels, multiples of 32.
        top_k: Detections per picture.
        classes: Class names; else the checkpoint's own, COCO's for 80 classes, or numbers.
        normalisation: What the network was trained on; in the graph, or, for `heads`, left to the caller.
        progress: Is told what is done next.

    Raises:
        UsageError: `input_size`, `top_k` or `classes` is impossible for this network.
        ExportError: The exported graph is not valid or does not compute what the network computes.
    """
    height, width = input_size
    names = classes if classes is not None else source.classes or _default_labels(source.heads["hm"])
    _check_options(source, input_size, top_k, names)
    frames = against_pytorch.pictures(height, width)
    module: nn.Module
    detector = Detector(source.network, top_k=top_k, normalisation=normalisation).eval()
    if form == "detector":
        module, inputs, name = detector, frames, FRAME.name
        outputs = [BOXES.name, SCORES.name, CLASSES.name]
    else:
        module, name, outputs = RawHeads(source.network).eval(), RAW_INPUT, []
        inputs = detector.normalise(torch.from_numpy(frames)).numpy()

    progress("exporting")
    heads = [name for name in source.heads if form == "heads" or name in HEADS]
    example = torch.from_numpy(inputs[:2])
    try:
        folded = torch_export.fold_batch_norm(module)
        model = torch_export.trace(folded, example, input_name=name, output_names=[*outputs, *heads])
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"PyTorch cannot export {source.arch}: {str(error).splitlines()[0]}") from error
    if dcn_op == "DCNv2":
        model = to_dcnv2(model, fuse=False)
        torch_export.declare_dcn_domain(model)
    description = Description(
        arch=source.arch,
        form=form,
        classes=tuple(names),
        input_size=(height, width),
        top_k=top_k if form == "detector" else None,
        checkpoint_sha256=source.sha256,
        mean=normalisation.mean,
        std=normalisation.std,
    )
    onnx.helper.set_model_props(model, description.to_metadata())

    progress("checking")
    written = torch_export.without_outputs(model, heads) if form == "detector" else model
    try:
        onnx.checker.check_model(written, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the ONNX checker refuses the exported graph: {str(error).splitlines()[0]}"
        ) from error
    differences = against_pytorch.compare(model, module, inputs, heads)
    return Export(written, description, differences)


def _check_options(
    source: checkpoint.Checkpoint, input_size: tuple[int, int], top_k: int, names: list[str]
) -> None:
    height, width = input_size
    if min(input_size) <= 0 or height % SIDE_MULTIPLE or width % SIDE_MULTIPLE:
        raise UsageError(f"input size: found {height}x{width}, expected multiples of {SIDE_MULTIPLE}")
    classes = source.heads["hm"]
    if len(names) != classes:
        raise UsageError(f"labels: found {len(names)} names, expected {classes}, the channels of hm")
    labels.check(names, where="labels")
    cells = classes * (height // STRIDE) * (width // STRIDE)
    if not 1 <= top_k <= min(MAX_TOP_K, cells):
        raise UsageError(
            f"top-k: found {top_k}, expected 1 to {min(MAX_TOP_K, cells)} "
            f"for {classes} classes at {height}x{width}"
        )
    if source.heads["wh"] not in (2, 2 * classes) or source.heads.get("reg", 2) != 2:
        raise ExportError(
            f"heads: found {checkpoint.format_heads(source.heads)}, "
            f"expected wh=2 or wh={2 * classes}, and reg=2 or none"
        )


def _default_labels(count: int) -> list[str]:
    return list(COCO_CLASSES) if count == len(COCO_CLASSES) else [f"class {index}" for index in range(count)]


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected HEIGHTxWIDTH, for example 512x512")
    return int(match[1]), int(match[2])


def _head_channels(text: str) -> dict[str, int]:
    if not re.fullmatch(r"[a-z_]+=\d+(,[a-z_]+=\d+)*", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected for example hm=80,reg=2,wh=2")
    heads = {name: int(channels) for name, channels in (part.split("=") for part in text.split(","))}
    return {name: heads[name] for name in (*HEADS, *sorted(heads.keys() - set(HEADS))) if name in heads}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.to_onnx", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="the original's .pth, a state dict, or .safetensors")
    parser.add_argument("output", type=Path, help=".onnx file; its description is written beside it as .json")
    parser.add_argument("--arch", choices=checkpoint.ARCHITECTURES, help="expected architecture (inferred)")
    parser.add_argument(
        "--heads", type=_head_channels, help="expected heads, for example hm=80,reg=2,wh=2 (inferred)"
    )
    parser.add_argument(
        "--form", choices=FORMS, default=FORMS[0], help="frame to boxes (default), or raw heads"
    )
    parser.add_argument(
        "--dcn-op", choices=DCN_OPS, default=DCN_OPS[0], help="node of a DCN (default: %(default)s)"
    )
    parser.add_argument(
        "--input-size", type=_size, default=INPUT_SIZE, metavar="HxW", help="default: 512x512"
    )
    parser.add_argument(
        "--top-k", type=int, default=TOP_K, help="detections per picture (default: %(default)s)"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line, UTF-8")
    parser.add_argument(
        "--mean",
        metavar="B,G,R",
        help=f"what the checkpoint was trained with: {normalisation.EXPECTED} (default: coco)",
    )
    parser.add_argument("--std", metavar="B,G,R", help="as --mean, which may name both")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; `arguments` in place of the process's own."""
    options = _parser().parse_args(arguments)
    if options.output.suffix != ".onnx":
        raise UsageError(f"{options.output}: expected a name that ends with .onnx")
    if not options.output.parent.is_dir():
        raise UsageError(f"{options.output.parent}: no such folder")
    classes = labels.read(options.labels) if options.labels else None
    pixels = normalisation.parse(options.mean, options.std)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=4)

        def progress(step: str) -> None:
            bar.update(task, advance=1, description=step)

        source = checkpoint.load(options.checkpoint, arch=options.arch, heads=options.heads)
        result = to_onnx(
            source,
            form=options.form,
            dcn_op=options.dcn_op,
            input_size=options.input_size,
            top_k=options.top_k,
            classes=classes,
            normalisation=pixels,
            progress=progress,
        )
        progress("writing")
        content = result.model.SerializeToString(deterministic=True)
        text = result.description.to_json(onnx_sha256=hashlib.sha256(content).hexdigest())
        write_together({options.output: content, options.output.with_suffix(".json"): text.encode()})
    print(
        f"{options.output}: {source.arch}, {checkpoint.format_heads(source.heads)}, {options.form}, "
        f"{'x'.join(map(str, options.input_size))}, {len(content) / 1e6:.1f} MB"
    )
    if source.source or source.left_out:
        print(
            f"  weights: {source.source or 'at the top'}; left out: {', '.join(source.left_out) or 'nothing'}"
        )
    for name, indices in labels.repeated(list(result.description.classes)).items():
        print(f"  warning: {name!r} is the name of classes {', '.join(map(str, indices))}")
    for name, difference in result.differences.items():
        reference = "PyTorch" if name in source.heads else "a decode of the same heads"
        print(f"  {name}: at most {difference:.1e} from {reference}")


if __name__ == "__main__":
    run(main)
