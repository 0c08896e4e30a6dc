"""Trains a CenterNet from scratch: on drawn scenes of coins, or on any set with annotations in COCO form."""

import argparse
import io
import os
import sys
from pathlib import Path

import cv2
import torch
from centernet_image.contract import INPUT_SIZE, SIDE_MULTIPLE
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from clients.errors import CenterNetError
from export.detector import Normalise
from export.errors import ExportError
from export.files import write_beside
from export.networks import ARCHITECTURES, create
from training.data import CocoPictures, Coins, Samples, Source
from training.losses import centernet_loss
from training.sampled_dcn import use_grid_sample

WARMUP = 0.05
"""Share of the iterations in which the learning rate rises."""


def main() -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    add = parser.add_argument
    add("output", type=Path, metavar="OUT.pth")
    add("--coco", type=Path, metavar="JSON", help="annotations to train on, in place of coins")
    add("--images", type=Path, metavar="DIR", help="folder of their pictures")
    add("--arch", choices=ARCHITECTURES, default="resdcn_18")
    add("--width", type=float, default=0.25, help="factor on all channel counts")
    add("--any-way-up", action="store_true", help="turn pictures, where up means nothing")
    add(
        "--crop",
        type=int,
        metavar="SIDE",
        help="train on random windows of the frames, a multiple of 32: less work an iteration",
    )
    add("--iterations", type=int, default=1100)
    add("--batch-size", type=int, default=16)
    add("--learning-rate", type=float, default=1e-3)
    add(
        "--ema-decay",
        type=float,
        default=0.98,
        help="of the average of the weights: 0.98 looks back about 50 iterations, more suits long runs",
    )
    add("--seed", type=int, default=1)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    add("--device", choices=devices, default=devices[-1])
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that read")
    args = parser.parse_args()
    if (args.coco is None) != (args.images is None):
        parser.error("--coco and --images go together")
    if args.crop is not None and not (0 < args.crop <= min(INPUT_SIZE) and args.crop % SIDE_MULTIPLE == 0):
        parser.error(
            f"--crop: found {args.crop}, expected a multiple of {SIDE_MULTIPLE} up to {min(INPUT_SIZE)}"
        )
    if not args.output.parent.is_dir():
        parser.error(f"no such folder: {args.output.parent}")
    if not 0 <= args.ema_decay < 1:
        parser.error(f"--ema-decay: found {args.ema_decay}, expected 0 or more, less than 1")
    try:
        source = Coins() if args.coco is None else CocoPictures(args.coco, args.images)
        if source.left_out:
            print(f"{args.coco}: {source.left_out}", file=sys.stderr)
        args.any_way_up |= args.coco is None
        own = ("output", "coco", "images")
        checkpoint = train(source, **{key: value for key, value in vars(args).items() if key not in own})
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_beside(args.output, content.getvalue())
    except (OSError, ValueError, ExportError, CenterNetError) as error:
        # From a process that reads comes its traceback as text; the message is the last line.
        message = str(error).strip().split("\n")[-1].removeprefix(f"{type(error).__name__}: ")
        print(f"training.train: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("training.train: stopped, nothing is written", file=sys.stderr)
        return 130
    return 0


def train(
    source: Source,
    *,
    arch: str,
    width: float,
    any_way_up: bool,
    crop: int | None = None,
    iterations: int,
    batch_size: int,
    learning_rate: float,
    ema_decay: float,
    seed: int,
    device: str,
    workers: int,
) -> dict:
    """Trains with AdamW, a warm-up, a cosine schedule and an average of the weights.

    On a GPU the convolutions run in bfloat16. The same arguments give the same checkpoint on the same CPU;
    a GPU sums in no fixed order, which changes the last digits.

    Returns:
        The checkpoint: `state_dict` of the averaged weights, `arch`, `width`, `heads`, `classes`,
        `iterations`. Weights are stored in float16: what is stored is the network, no better copy exists.

    Raises:
        ExportError: The training diverged.
    """
    torch.manual_seed(seed)
    heads = {"hm": len(source.classes), "wh": 2, "reg": 2}
    network = create(arch, heads, width=width).to(device, memory_format=_layout(device))
    if device == "cpu":
        use_grid_sample(network)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=iterations, pct_start=WARMUP, cycle_momentum=False
    )
    count = iterations * batch_size
    samples = Samples(source, seed=seed, count=count, size=INPUT_SIZE, any_way_up=any_way_up, crop=crop)
    loader = DataLoader(
        samples, batch_size, num_workers=workers, pin_memory=device != "cpu", worker_init_fn=_start_worker
    )
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(f"{arch}, width {width}", total=iterations, loss="")
        for step, batch in enumerate(loader, 1):
            losses = _step(network, optimizer, {k: v.to(device, non_blocking=True) for k, v in batch.items()})
            schedule.step()
            average.update_parameters(network)
            if step % 20 == 0 or step == iterations:
                _check_finite({"the loss": losses["total"]}, step)
                text = "  ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
                progress.update(task, completed=step, loss=text)
                if not progress.console.is_terminal and step % 100 == 0:
                    progress.console.print(f"{step}/{iterations}  {text}")
    state = {name: _stored(value) for name, value in average.module.state_dict().items()}
    _check_finite(state, iterations)
    return {
        "state_dict": state,
        "arch": arch,
        "width": width,
        "heads": heads,
        "classes": list(source.classes),
        "iterations": iterations,
    }


def _layout(device: str) -> torch.memory_format:
    """The quicker one; but PyTorch 2.15 crashes on a CPU when it trains narrow channels-last networks."""
    return torch.contiguous_format if device == "cpu" else torch.channels_last


def _start_worker(_: int) -> None:
    """One process per core is enough."""
    cv2.setNumThreads(1)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, batch: dict) -> dict[str, torch.Tensor]:
    """One update; returns the losses before it."""
    frames = batch["frame"]
    normalised = Normalise().to(frames.device)(frames)
    normalised = normalised.contiguous(memory_format=_layout(frames.device.type))
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.is_cuda):
        heads = network(normalised)
    losses = centernet_loss(heads, batch)
    optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    nn.utils.clip_grad_norm_(network.parameters(), 10)
    optimizer.step()
    return losses


def _check_finite(values: dict[str, torch.Tensor], step: int) -> None:
    for name, value in values.items():
        if not value.isfinite().all():
            raise ExportError(
                f"{name} is not finite after {step} iterations: the training diverged: lower --learning-rate"
            )


def _stored(value: torch.Tensor) -> torch.Tensor:
    """Weights as float16; statistics, whose range is wider, and biases as they are."""
    return (value.half() if value.ndim > 1 else value).cpu().contiguous()


if __name__ == "__main__":
    sys.exit(main())
