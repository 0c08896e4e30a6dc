"""CenterNet checkpoint to ONNX file: `python -m export.to_onnx CHECKPOINT OUT.onnx`."""

import argparse
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from centernet_image.contract import (
    COLORS,
    FITS,
    FRAME,
    HEADS,
    RAW_INPUT,
    RAW_PREVIOUS,
    SIDE_MULTIPLE,
    STRIDE,
    TASKS,
    Normalisation,
)
from centernet_image.description import Description
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import nn

from export import checkpoint, labels, normalisation, tasks
from export.detector import Detector, Normalise, RawHeads
from export.errors import ExportError, UsageError, run
from export.files import write_together
from export.graphs import torch_export
from export.graphs.rewrite import to_dcnv2
from export.graphs.surgery import rewritten
from export.networks import STEMS
from export.plan import feed_dicts
from export.verify import against_pytorch

FORMS = ("detector", "heads")
DCN_OPS = ("DeformConv", "DCNv2")
MAX_TOP_K = 3840
"""TensorRT's limit."""


@dataclass(frozen=True)
class Export:
    """An exported and checked network.

    Attributes:
        model: The graph.
        description: Facts about it.
        differences: From PyTorch, by output.
        left_out: Heads that the task does not read, and their channels.
    """

    model: onnx.ModelProto
    description: Description
    differences: against_pytorch.Differences
    left_out: dict[str, int]


def to_onnx(
    source: checkpoint.Checkpoint,
    *,
    form: str = "detector",
    dcn_op: str = "DeformConv",
    task: str | None = None,
    input_size: tuple[int, int] | None = None,
    top_k: int | None = None,
    classes: list[str] | None = None,
    normalisation: Normalisation | None = None,
    color: str | None = None,
    fit: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Export:
    """Exports a network and checks the result.

    Args:
        source: The network.
        form: `detector`: uint8 BGR `frame` [N, H, W, 3] in; `boxes` [N, K, 4], `scores` [N, K], `classes`
            [N, K], the task's further peaks, and `peaks` [N, K, columns] of all of them out. `heads`:
            normalised float `input` [N, 3, H, W] in; all raw heads out: `hm`, `reg`, `wh`, then the others by
            name.
        dcn_op: The node of a deformable convolution: the standard `DeformConv`, or `DCNv2`.
        task: One of the contract's `TASKS`; by default the one that the heads tell.
        input_size: Height and width, pixels, multiples of 32. This and all below by default the task's.
        top_k: Detections per picture.
        classes: Class names; else the checkpoint's own, the task's for their number, or numbers.
        normalisation: What the network was trained on; in the graph, or, for `heads`, left to the caller.
        color: The order of channels that it was trained on: one of the contract's `COLORS`.
        fit: How pictures were laid into its frame: one of the contract's `FITS`.
        progress: Is told what is done next.

    Raises:
        UsageError: `task`, `input_size`, `top_k`, `classes` or `fit` is impossible for this network.
        ExportError: The exported graph is not valid or does not compute what the network computes.
    """
    task = _task(source, form, task)
    kind = tasks.TASKS[task]
    height, width = input_size = input_size or kind.input_size
    top_k = kind.default_top_k if top_k is None else top_k
    normalisation, color = normalisation or kind.normalisation, color or kind.color
    fit = fit or TASKS[task].fit
    names = classes if classes is not None else source.classes or _default_labels(kind, source.heads)
    if task == tasks.DETECT and fit != TASKS[task].fit:
        raise UsageError(
            f"--fit: found {fit}, expected {TASKS[task].fit} for a detector: clients lay pictures into "
            "its frames themselves, and know no other way"
        )
    _check_options(source, form, input_size, top_k, names)
    frame = against_pytorch.pictures(height, width)
    normalise = Normalise(normalisation, color)
    module: nn.Module
    if form == "detector":
        module = Detector(
            source.network, top_k=top_k, normalisation=normalisation, color=color, task=task
        ).eval()
        feeds = {FRAME.name: frame}
        if TASKS[task].inputs:
            feeds |= _read(source, feed_dicts.previous(frame))
        outputs, heads = tasks.outputs_of(task), module.reads()
    else:
        module, outputs, heads = RawHeads(source.network).eval(), [], list(source.heads)
        feeds = {RAW_INPUT: normalise(torch.from_numpy(frame)).numpy()}
        if source.network.stems:
            previous = feed_dicts.previous(frame, feed_dicts.RAW_PREVIOUS)
            previous[RAW_PREVIOUS] = normalise(torch.from_numpy(previous[RAW_PREVIOUS])).numpy()
            feeds |= _read(source, previous)

    progress("exporting")
    examples = [torch.from_numpy(array[:2]) for array in feeds.values()]
    try:
        folded = torch_export.fold_batch_norm(module)
        model = torch_export.trace(folded, examples, input_names=list(feeds), output_names=[*outputs, *heads])
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"PyTorch cannot export {source.arch}: {str(error).splitlines()[0]}") from error
    if dcn_op == "DCNv2":
        model = rewritten(model, partial(to_dcnv2, fuse=False))
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
        task=task,
        fit=fit,
        color=color,
        inputs=tuple(feeds),
        outputs=tuple(outputs or heads),
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
    differences = against_pytorch.compare(model, module, feeds, heads, task=task)
    left_out = {name: source.heads[name] for name in source.heads if name not in heads}
    return Export(written, description, differences, left_out)


def _task(source: checkpoint.Checkpoint, form: str, name: str | None) -> str:
    """What the network is for; raw heads may be of anything."""
    if form == "heads" and name is None:
        candidates = tasks.recognise(source.heads)
        return candidates[0] if len(candidates) == 1 else tasks.DETECT
    return tasks.choose(source.heads, stems=source.network.stems, name=name)


def _read(source: checkpoint.Checkpoint, previous: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of both stems' inputs whose stem the network has."""
    pairs = zip(STEMS, previous.items(), strict=True)
    return dict(item for stem, item in pairs if stem in source.network.stems)


def _check_options(
    source: checkpoint.Checkpoint, form: str, input_size: tuple[int, int], top_k: int, names: list[str]
) -> None:
    height, width = input_size
    if min(input_size) <= 0 or height % SIDE_MULTIPLE or width % SIDE_MULTIPLE:
        raise UsageError(f"input size: found {height}x{width}, expected multiples of {SIDE_MULTIPLE}")
    classes = source.heads.get("hm", 0)
    if len(names) != classes:
        raise UsageError(f"labels: found {len(names)} names, expected {classes}, the channels of hm")
    labels.check(names, where="labels")
    if form == "heads":
        return
    cells = classes * (height // STRIDE) * (width // STRIDE)
    if not 1 <= top_k <= min(MAX_TOP_K, cells):
        raise UsageError(
            f"top-k: found {top_k}, expected 1 to {min(MAX_TOP_K, cells)} "
            f"for {classes} classes at {height}x{width}"
        )


def _default_labels(kind: type[tasks.Task], heads: dict[str, int]) -> list[str]:
    count = heads.get("hm", 0)
    return list(kind.labels(heads) or (f"class {index}" for index in range(count)))


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
    add = parser.add_argument
    add("checkpoint", type=Path, help="the original's .pth, a state dict, or .safetensors")
    add("output", type=Path, help=".onnx file; its description is written beside it as .json")
    add("--arch", choices=checkpoint.ARCHITECTURES, help="expected architecture (inferred)")
    add("--heads", type=_head_channels, help="expected heads, for example hm=80,reg=2,wh=2 (inferred)")
    add("--form", choices=FORMS, default=FORMS[0], help="frame to boxes (default), or raw heads")
    add("--dcn-op", choices=DCN_OPS, default=DCN_OPS[0], help="node of a DCN (default: %(default)s)")
    add("--task", choices=TASKS, help="what the network is for, where its heads do not tell")
    add("--input-size", type=_size, metavar="HxW", help=f"default: {_defaults('input_size', _as_sides)}")
    add("--top-k", type=int, help=f"detections per picture (default: {_defaults('default_top_k', str)})")
    add("--labels", type=Path, metavar="FILE", help="class names, one a line, UTF-8")
    add(
        "--mean",
        metavar="B,G,R",
        help=f"what the checkpoint was trained with: {normalisation.EXPECTED} (default: the task's own, "
        "imagenet for boxes3d, none for embeddings, else coco)",
    )
    add("--std", metavar="B,G,R", help="as --mean, which may name both")
    add("--color", choices=COLORS, help=f"channels as it was trained (default: {_defaults('color', str)})")
    fits = ", ".join(f"{name} {task.fit}" for name, task in TASKS.items() if task.fit != FITS[0])
    add("--fit", choices=FITS, help=f"how it was trained to see a picture (default: {FITS[0]}, {fits})")
    return parser


def _as_sides(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def _defaults(name: str, text: Callable[[Any], str]) -> str:
    """The detector's default, and those of the tasks that have another."""
    usual = getattr(tasks.TASKS[tasks.DETECT], name)
    others = {task: getattr(kind, name) for task, kind in tasks.TASKS.items()}
    texts = [f"{task} {text(value)}" for task, value in others.items() if value != usual]
    return ", ".join([text(usual), *texts])


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
            task=options.task,
            input_size=options.input_size,
            top_k=options.top_k,
            classes=classes,
            normalisation=pixels,
            color=options.color,
            fit=options.fit,
            progress=progress,
        )
        progress("writing")
        content = result.model.SerializeToString(deterministic=True)
        text = result.description.to_json(onnx_sha256=hashlib.sha256(content).hexdigest())
        write_together({options.output: content, options.output.with_suffix(".json"): text.encode()})
    facts = result.description
    kind = facts.form if facts.task == tasks.DETECT or facts.form == "heads" else facts.task
    print(
        f"{options.output}: {source.arch}, {tasks.format_heads(source.heads)}, {kind}, "
        f"{_as_sides(facts.input_size)}, {len(content) / 1e6:.1f} MB"
    )
    if result.left_out:
        print(f"  heads that {facts.task} does not read, left out: {tasks.format_heads(result.left_out)}")
    if source.network.stems and len(result.model.graph.input) == 1:
        print(f"  left out: what reads the frame before ({', '.join(source.network.stems)})")
    if source.source or source.left_out:
        print(
            f"  weights: {source.source or 'at the top'}; left out: {', '.join(source.left_out) or 'nothing'}"
        )
    for name, indices in labels.repeated(list(facts.classes)).items():
        print(f"  warning: {name!r} is the name of classes {', '.join(map(str, indices))}")
    for name, difference in result.differences.items():
        reference = "PyTorch" if name in source.heads else "a decode of the same heads"
        print(f"  {name}: at most {difference:.1e} from {reference}")


if __name__ == "__main__":
    run(main)
