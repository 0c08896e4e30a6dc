"""ONNX file to TensorRT plan: python -m export.to_plan MODEL.onnx OUT.plan."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
from rich.console import Console

from export import description, errors, onnx_files, plan_engine, plan_feeds, plan_network, plan_verify
from export.files import sha256, sha256_of_all, write_beside, write_together
from export.plan_description import PlanDescription, Profiles, builder_sha256, find_gpu, misfits, read
from export.plan_engine import PlanError


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        ExportError: with the one line that the user reads.
    """
    options = _parse(arguments)
    console = Console(stderr=True)
    if options.target:
        plan_engine.with_rtx_libraries()
    elif find_gpu() is None:
        raise PlanError(
            "found no NVIDIA GPU, and a plan is built on the kind of GPU that runs it: "
            "use a machine with one, or check the model without one by --target SM86"
        )
    if options.if_needed and options.output.is_file() and not options.model.exists():
        _check_without_model(options, console)
        return
    model, digest = onnx_files.load(options.model)
    trt = plan_engine.load_tensorrt(rtx=bool(options.target))
    pictures = _pictures(options, console) if options.precision == "int8" else []
    facts = _describe(model, digest, pictures, options, trt)
    if options.if_needed and _is_current(options.output, facts, console):
        return
    if options.verify and not pictures:
        pictures = _pictures(options, console)
    console.print(
        f"building {options.output}: {facts.precision} for {facts.gpu or options.target}", soft_wrap=True
    )
    for file in filter(None, (options.output, options.timing_cache)):
        file.parent.mkdir(parents=True, exist_ok=True)
    network = plan_network.make(model, options.precision, plan_feeds.from_pictures(model, pictures))
    engine, timing_cache = plan_engine.build(
        trt,
        network.model,
        shapes=facts.profiles,
        tf32=network.tf32,
        target=options.target,
        timing_cache=_read_timing_cache(options.timing_cache),
        optimization_level=options.optimization_level,
        console=console if console.is_terminal else None,
    )
    if timing_cache is not None:
        write_beside(options.timing_cache, timing_cache)
    if options.verify:
        feeds = _feeds(network.reference, facts.profiles, pictures)
        tolerance = plan_verify.TOLERANCES[options.precision]
        differences = plan_verify.verify(network.reference, engine, feeds, tolerance, rounded=network.rounded)
        _report(differences, console)
    beside = options.output.with_suffix(".json")
    text = json.dumps(_network_facts(model) | {"plan": asdict(facts)}, indent=1, ensure_ascii=False)
    # The description last: it must not call an older plan current.
    write_together({options.output: engine, beside: text.encode() + b"\n"})
    console.print(f"wrote {options.output} ({len(engine) / 2**20:.1f} MiB) and {beside.name}", soft_wrap=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export.to_plan", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("output", type=Path, metavar="OUT.plan", help="OUT.json is written beside it")
    parser.add_argument(
        "--precision",
        choices=plan_network.PRECISIONS,
        default="fp16",
        help="fp32 is exact and slow (no tensor cores), tf32 as coarse as fp16 (default fp16)",
    )
    parser.add_argument(
        "--batch", type=_batch, default=(1, 8, 32), metavar="MIN,OPT,MAX", help="batch sizes (default 1,8,32)"
    )
    parser.add_argument(
        "--plugin", type=Path, help="libdcnv2.so, unless it is preloaded or built in build/dcnv2"
    )
    parser.add_argument("--timing-cache", type=Path, help="read if it is there, and written")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="pictures for int8, and for --verify")
    parser.add_argument("--pictures", type=int, default=100, help="how many of them at most (default 100)")
    parser.add_argument(
        "--verify", action="store_true", help="compare with ONNX Runtime; refuse what differs"
    )
    parser.add_argument(
        "--optimization-level", type=int, choices=range(6), metavar="0-5", help="TensorRT's own"
    )
    parser.add_argument("--target", metavar="SM86", help="check without a GPU, by building with TensorRT-RTX")
    parser.add_argument(
        "--if-needed", action="store_true", help="keep a plan that fits; MODEL may be missing then"
    )
    options = parser.parse_args(arguments)
    if options.precision == "int8" and options.calibration is None:
        parser.error("--precision int8 needs --calibration DIR: pictures like those to be served")
    if options.pictures < 1:
        parser.error(f"--pictures: found {options.pictures}, expected 1 or more")
    if options.verify and options.target:
        parser.error("--verify runs the plan, which --target cannot: use a machine with a GPU")
    if options.target and not (options.target.startswith("SM") and options.target[2:].isdigit()):
        parser.error(
            f"--target: found {options.target}, expected SM and a compute capability, for example SM86"
        )
    return options


def _batch(text: str) -> tuple[int, int, int]:
    sizes = [int(size) for size in text.split(",")] if text.replace(",", "").isdecimal() else []
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3 or sizes != sorted(sizes) or sizes[0] < 1:
        raise argparse.ArgumentTypeError(
            f"found {text}, expected a size or three rising ones, for example 1,8,32"
        )
    return sizes[0], sizes[1], sizes[2]


def _pictures(options: argparse.Namespace, console: Console) -> list[Path]:
    """Those of `--calibration` that can be read, as many as are asked for."""
    if options.calibration is None:
        return []
    found = plan_feeds.find_pictures(options.calibration, limit=options.pictures)
    if found.skipped:
        console.print(f"warning: {found}: going on with {len(found.paths)}", soft_wrap=True, markup=False)
    return found.paths


def _describe(
    model: onnx.ModelProto, digest: str, pictures: list[Path], options: argparse.Namespace, trt: ModuleType
) -> PlanDescription:
    has_plugin = any(node.op_type in ("DeformConv", "DCNv2") for node in model.graph.node)
    return PlanDescription(
        **_surroundings(options, trt, has_plugin=has_plugin),
        precision=options.precision,
        onnx_sha256=digest,
        calibration_sha256=sha256_of_all(pictures) if pictures else "",
        optimization_level=options.optimization_level,
        profiles=plan_engine.profiles(model, options.batch),
    )


def _surroundings(options: argparse.Namespace, trt: ModuleType, *, has_plugin: bool) -> dict[str, str]:
    plugin = plan_engine.load_plugin(trt, options.plugin, rtx=bool(options.target)) if has_plugin else None
    gpu = None if options.target else find_gpu()
    return {
        "tensorrt": f"RTX {trt.__version__}" if options.target else trt.__version__,
        "gpu": gpu.name if gpu else "",
        "compute_capability": gpu.compute_capability
        if gpu
        else f"{options.target[2:-1]}.{options.target[-1]}",
        "plugin_sha256": sha256(plugin) if plugin else "",
    }


def _is_current(plan: Path, facts: PlanDescription, console: Console) -> bool:
    try:
        reasons = misfits(read(plan), asdict(facts))
    except errors.ExportError as error:
        reasons = [str(error)]
    if not plan.is_file():
        reasons = [f"no {plan}"]
    for reason in reasons:
        console.print(f"a plan is needed: {reason}", soft_wrap=True)
    if not reasons:
        console.print(f"{plan} fits: nothing to build", soft_wrap=True)
    return not reasons


def _check_without_model(options: argparse.Namespace, console: Console) -> None:
    section = read(options.output)
    trt = plan_engine.load_tensorrt(rtx=bool(options.target))
    here = _surroundings(options, trt, has_plugin=bool(section.get("plugin_sha256")))
    reasons = misfits(section, here)
    if reasons:
        raise PlanError(
            f"{options.output} does not fit ({'; '.join(reasons)}), and found no {options.model} to build "
            "another from: put the ONNX file there"
        )
    for reason in misfits(section, {"builder_sha256": builder_sha256()}):
        console.print(f"{options.output} is served, but is an older build's ({reason})", soft_wrap=True)
    console.print(f"{options.output} fits: nothing to build", soft_wrap=True)


def _report(differences: list[plan_verify.Difference], console: Console) -> None:
    for difference in differences:
        console.print(str(difference), soft_wrap=True)
    failed = [difference.output for difference in differences if not difference.passed]
    if failed:
        names = ", ".join(dict.fromkeys(failed))
        raise PlanError(f"found no agreement with ONNX Runtime in {names} (above): the plan is not written")


def _feeds(
    reference: onnx.ModelProto, shapes: Profiles, pictures: list[Path]
) -> Iterator[dict[str, np.ndarray]]:
    """One feed for each batch size of the profile, of pictures if there are any."""
    dtypes = {
        tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
        for tensor in reference.graph.input
    }
    for size in sorted({shape[0] for shape in next(iter(shapes.values())).values()}):
        if not pictures:
            sides = {name: [size, *shape["opt"][1:]] for name, shape in shapes.items()}
            yield plan_feeds.noise(sides, dtypes, seed=size)
            continue
        feeds = list(plan_feeds.from_pictures(reference, pictures[:size]))
        yield {
            name: np.concatenate([feeds[index % len(feeds)][name] for index in range(size)])
            for name in feeds[0]
        }


def _network_facts(model: onnx.ModelProto) -> dict[str, object]:
    try:
        return asdict(description.read(model))
    except ValueError:  # not one of ours: there is nothing to say about it
        return {}


def _read_timing_cache(path: Path | None) -> bytes | None:
    if path is None:
        return None
    return path.read_bytes() if path.is_file() else b""


if __name__ == "__main__":
    errors.run(main)
