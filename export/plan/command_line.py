"""The command line of export.to_plan."""

import argparse
from pathlib import Path

from export.plan import lowering, picture_options, profiles, quantize


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; a mistake ends the process with code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m export.to_plan", description="ONNX file to TensorRT plan."
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL.onnx")
    add("output", type=Path, metavar="OUT.plan", help="OUT.json is written beside it")
    add(
        "--precision",
        choices=lowering.PRECISIONS,
        default="fp16",
        help="fp32 is exact and slow (no tensor cores), tf32 as coarse as fp16 (default fp16)",
    )
    add("--batch", type=_batch, metavar="MIN,OPT,MAX", help="batch sizes (default 1,8,32, or what is fixed)")
    add(
        "--shapes",
        action="append",
        default=[],
        metavar="INPUT=MIN,OPT,MAX",
        help="whole shapes of an input with other open dimensions, in place of --batch, for example "
        "input=1x3x64x64,1x3x512x512,8x3x1024x1024; for each such input",
    )
    add(
        "--keep-fp32",
        action="append",
        default=[],
        metavar="PATTERN",
        help="nodes that fp16 and int8 leave in FP32, by name (* and ?); may be repeated",
    )
    add("--fp32-offsets", action="store_true", help="offsets of DCNs and grids of GridSample in FP32")
    add(
        "--int8-groups",
        type=_groups,
        default=[],
        metavar="GROUP,…",
        help=f"convolutions that int8 quantizes, of {', '.join(quantize.GROUPS)} (default: those of the "
        f"backbone that it makes faster, with at least {quantize.MIN_CHANNELS} channels)",
    )
    add("--plugin", type=Path, help="libdcnv2.so, unless it is preloaded or built in build/dcnv2")
    add("--timing-cache", type=Path, metavar="FILE.cache", help="read if it is there, and written")
    add(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="pictures, or .npz and .npy files with the network's own inputs, for int8 and --verify",
    )
    add("--pictures", type=int, default=100, help="how many of them at most (default 100)")
    add("--verify", action="store_true", help="compare with ONNX Runtime; refuse what differs")
    add("--optimization-level", type=int, choices=range(6), metavar="0-5", help="TensorRT's own")
    add("--target", metavar="SM86", help="check without a GPU, by building with TensorRT-RTX")
    add("--if-needed", action="store_true", help="keep a plan that fits; MODEL may be missing then")
    picture_options.add_arguments(parser)
    options = parser.parse_args(arguments)
    options.shapes = profiles.parse(options.shapes)
    if options.output.suffix != ".plan":
        parser.error(f"OUT.plan: found {options.output}, expected a name that ends in .plan")
    if options.timing_cache and options.timing_cache.suffix != ".cache":
        parser.error(f"--timing-cache: found {options.timing_cache}, expected a name that ends in .cache")
    written = [options.output, options.output.with_suffix(".json"), options.timing_cache]
    files = [path.resolve() for path in (options.model, *written) if path]
    if len({*files}) < len(files):
        parser.error("MODEL.onnx, OUT.plan, OUT.json and --timing-cache: expected a file of its own for each")
    if options.precision == "int8" and options.calibration is None:
        parser.error("--precision int8 needs --calibration DIR: pictures or arrays like those to be served")
    if options.precision != "int8" and options.int8_groups:
        parser.error(f"--int8-groups: found --precision {options.precision}, expected int8")
    if options.pictures < 1:
        parser.error(f"--pictures: found {options.pictures}, expected 1 or more")
    if options.verify and options.target:
        parser.error("--verify runs the plan, which --target cannot: use a machine with a GPU")
    if options.precision in ("fp32", "tf32") and (options.keep_fp32 or options.fp32_offsets):
        parser.error(
            f"--keep-fp32, --fp32-offsets: found --precision {options.precision}, expected fp16 or int8"
        )
    if options.target and not (options.target.startswith("SM") and options.target[2:].isdigit()):
        parser.error(
            f"--target: found {options.target}, expected SM and a compute capability, for example SM86"
        )
    return options


def _batch(text: str) -> tuple[int, int, int]:
    sizes = [int(size) for size in text.split(",")] if text.replace(",", "").isdecimal() else []
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3 or sizes != sorted(sizes) or sizes[0] < 1 or sizes[-1] > profiles.LARGEST:
        raise argparse.ArgumentTypeError(
            f"found {text}, expected a size or three rising ones up to {profiles.LARGEST}, for example 1,8,32"
        )
    return sizes[0], sizes[1], sizes[2]


def _groups(text: str) -> list[str]:
    groups = text.split(",")
    for group in groups:
        if group not in quantize.GROUPS:
            raise argparse.ArgumentTypeError(f"found {group}, expected some of {','.join(quantize.GROUPS)}")
    return groups
