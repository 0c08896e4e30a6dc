"""Time every DCNv2 layer of dla_34 and resdcn_18 at 512x512, ours beside everything else.

    python -m benchmarks.dcnv2 --library build/kernel/libdcnv2_kernel.so --output out/benchmarks

Each contender's output is checked against FP64 before it is timed. One that cannot run is left out, with its
reason.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.dcnv2_contenders import (
    Contender,
    Convolution,
    Inputs,
    Ours,
    Shape,
    SkippedError,
    Torchvision,
    host_time_us,
    time_us,
)

NETWORKS: dict[str, list[Shape]] = {
    "dla_34": [
        Shape(512, 256, 16),
        Shape(256, 256, 32),
        *[Shape(256, 128, 32)] * 2,
        *[Shape(128, 128, 64)] * 2,
        *[Shape(128, 64, 64)] * 4,
        *[Shape(64, 64, 128)] * 5,
        Shape(256, 64, 32),
    ],
    "resdcn_18": [Shape(512, 256, 16), Shape(256, 128, 32), Shape(128, 64, 64)],
}
"""DCN layers of each network at 512x512, a shape as often as the network has it."""

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}

# Relative to the FP64 output's norm. Coordinates in half, as some contenders keep them, cost a few percent.
ERROR_LIMIT = 0.2


def _tensorrt(name: str, batches: Sequence[int]) -> Contender:
    try:
        from benchmarks import dcnv2_engines
    except ImportError as error:
        raise SkippedError(str(error)) from None
    contender: Contender = getattr(dcnv2_engines, name)(batches)
    return contender


def contenders(arguments: argparse.Namespace) -> tuple[list[Contender], dict[str, str]]:
    """Those that can run here, and of the others why not."""
    found: list[Contender] = []
    skipped: dict[str, str] = {}
    if arguments.device == "cpu":
        from benchmarks.dcnv2_engines import OnnxRuntime

        return [Torchvision(), OnnxRuntime()], skipped
    makers: dict[str, Any] = {
        "dcnv2": lambda: Ours(arguments.library, tf32=arguments.precision == "tf32"),
        "torchvision": Torchvision,
        "plain convolution, cuDNN": Convolution,
        "plain convolution, TensorRT": lambda: _tensorrt("TensorRTConvolution", arguments.batch),
        "NVIDIA's plugin, TensorRT": lambda: _tensorrt("NvidiaPlugin", arguments.batch),
    }
    for name, make in makers.items():
        if arguments.only and name not in arguments.only:
            continue
        try:
            found.append(make())
        except (SkippedError, OSError) as error:
            skipped[name] = str(error).splitlines()[0]
    return found, skipped


def measure(
    row: dict[str, Any], shape: Shape, batch: int, rivals: Sequence[Contender], arguments: argparse.Namespace
) -> None:
    """Check and time one layer; adds microseconds, errors and reasons by contender to its row."""
    dtype = PRECISIONS[arguments.precision]
    cuda = arguments.device == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arguments.precision == "tf32"
    cache = torch.cuda.get_device_properties(0).L2_cache_size if cuda else 0
    count = max(2, min(math.ceil(2 * cache / shape.bytes(batch, dtype.itemsize)), arguments.sets))
    sets = [Inputs.random(shape, batch, dtype, arguments.device, seed) for seed in range(count)]
    images = min(batch, 2)
    for rival in rivals:
        try:
            row["us"][rival.name] = _checked_time_us(row, rival, shape, batch, sets, images, arguments)
        except SkippedError as error:
            row["skipped"][rival.name] = str(error)
        if isinstance(rival, Ours):
            row |= {"sets": count, "tactic": rival.tactic, "tactics_us": rival.times_us}


def _checked_time_us(
    row: dict[str, Any],
    rival: Contender,
    shape: Shape,
    batch: int,
    sets: Sequence[Inputs],
    images: int,
    arguments: argparse.Namespace,
) -> float:
    truth = rival.truth(sets[0], images)

    def check(output: torch.Tensor) -> None:
        relative = ((output[:images].double() - truth).norm() / truth.norm()).item()
        row["error"][rival.name] = relative
        if not relative < ERROR_LIMIT:
            raise SkippedError(f"wrong output: relative error {relative:.2g}, expected below {ERROR_LIMIT}")

    runs = rival.prepare(shape, batch, sets)
    output, again = runs[0](), runs[0]()
    check(output)
    own_memory = output.data_ptr() == again.data_ptr()
    if own_memory:
        output.zero_()
    if arguments.device == "cpu":
        return host_time_us(runs, repeats=arguments.repeats)
    time = time_us(runs, graph=rival.graph, repeats=arguments.repeats)
    # What was timed must have computed it too.
    if own_memory:
        check(output)
    return time


def ceilings() -> dict[str, float]:
    """What this GPU reaches: products in TFLOP/s (FP16, 8192 cubed), copies in TB/s (read and written)."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    source = torch.empty(2**31, device="cuda", dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    product = time_us([lambda: a @ b] * 10, graph=False, repeats=5)
    copy = time_us([lambda: target.copy_(source)] * 10, graph=False, repeats=5)
    return {"tflops": 2 * 8192**3 / product / 1e6, "tb_per_s": 2 * source.numel() / copy / 1e6}


def summary(rows: Sequence[dict[str, Any]], batches: Sequence[int], network: str) -> list[dict[str, Any]]:
    """Sum over the network's layers per contender and batch, where it ran all of them."""
    sums = []
    names = list(dict.fromkeys(name for row in rows for name in row["us"]))
    for name in names:
        line: dict[str, Any] = {"contender": name, "us": {}}
        for batch in batches:
            times = {row["layer"]: row["us"].get(name) for row in rows if row["batch"] == batch}
            layers = [times.get(str(shape)) for shape in NETWORKS[network]]
            line["us"][batch] = None if None in layers else sum(time for time in layers if time is not None)
        known = [time for time in line["us"].values() if time is not None]
        line["geometric_mean_us"] = (
            math.exp(sum(map(math.log, known)) / len(known)) if len(known) == len(batches) else None
        )
        sums.append(line)
    return sums


def markdown(results: dict[str, Any], batches: Sequence[int]) -> str:
    """The report as a page."""
    text = f"# DCNv2 layers, {results['precision']}\n\n{report.environment_lines(results['environment'])}\n"
    peak = results["ceilings"]["tflops"] if results["ceilings"] else None
    for network, sums in results["networks"].items():
        ours = next((line for line in sums if line["contender"] == "dcnv2"), None)
        text += f"## {network}: sum of its {len(NETWORKS[network])} layers, microseconds\n\n"
        columns = ["", *(f"batch {batch}" for batch in batches), "geometric mean", "÷ dcnv2"]
        lines = []
        for line in sums:
            mean = line["geometric_mean_us"]
            ratio = mean / ours["geometric_mean_us"] if mean and ours and ours["geometric_mean_us"] else None
            lines.append([line["contender"], *(line["us"][batch] for batch in batches), mean, ratio])
        text += report.markdown_table(columns, lines) + "\n"
    names = list(dict.fromkeys(name for row in results["layers"] for name in row["us"]))
    text += "## Each layer, microseconds\n\n"
    text += report.markdown_table(
        ["layer", "batch", *names, "tactic", "share of peak", "relative error"],
        [
            [
                row["layer"],
                row["batch"],
                *(row["us"].get(name) for name in names),
                row.get("tactic"),
                row["tflop"] / row["us"]["dcnv2"] * 1e6 / peak if peak and "dcnv2" in row["us"] else None,
                row["error"].get("dcnv2"),
            ]
            for row in results["layers"]
        ],
    )
    return text


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0], prog="benchmarks.dcnv2")
    options.add_argument("--library", type=Path, default=Path("build/kernel/libdcnv2_kernel.so"))
    options.add_argument("--output", type=Path, default=Path("out/benchmarks"))
    options.add_argument("--precision", choices=PRECISIONS, default="fp16")
    options.add_argument(
        "--batch", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 32]
    )
    options.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: torchvision beside ONNX Runtime, FP32"
    )
    options.add_argument("--network", choices=NETWORKS, action="append")
    options.add_argument("--only", action="append", help="a contender's name; again for more")
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--sets", type=int, default=64, help="most input sets to rotate through")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    arguments = parser().parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "benchmarks.dcnv2: found no CUDA device, expected one: give --device cpu",
            file=sys.stderr,
        )
        return 2
    if arguments.device == "cpu":
        arguments.precision = "fp32"
    rivals, skipped = contenders(arguments)
    for name, reason in skipped.items():
        print(f"{name} left out: {reason}", flush=True)
    networks = arguments.network or list(NETWORKS)
    shapes = dict.fromkeys(shape for network in networks for shape in NETWORKS[network])
    rows = {
        (shape, batch): {
            "layer": str(shape),
            "batch": batch,
            "tflop": shape.flops(batch) / 1e12,
            "us": {},
            "error": {},
            "skipped": {},
        }
        for batch in arguments.batch
        for shape in shapes
    }
    results: dict[str, Any] = {
        "environment": report.environment(),
        "precision": arguments.precision,
        "ceilings": ceilings() if arguments.device == "cuda" else None,
        "skipped": skipped,
        "layers": list(rows.values()),
    }
    page = ""
    for last in (False, True):
        chosen = [rival for rival in rivals if rival.last == last]
        if not chosen:
            continue
        for (shape, batch), row in rows.items():
            measure(row, shape, batch, chosen, arguments)
            if arguments.device == "cuda":
                torch.cuda.empty_cache()
            times = {
                rival.name: row["us"].get(rival.name, row["skipped"].get(rival.name)) for rival in chosen
            }
            print(row["layer"], f"batch {batch}", times, row.get("tactic"), flush=True)
            # Written after every layer: what a later one breaks is not lost.
            results["networks"] = {
                name: summary(results["layers"], arguments.batch, name) for name in networks
            }
            page = markdown(results, arguments.batch)
            report.write(arguments.output, f"dcnv2.{arguments.precision}", results=results, markdown=page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
