"""ONNX file to TensorRT plan: python -m export.to_plan MODEL.onnx OUT.plan."""

import argparse
import hashlib
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType

import onnx
from rich.console import Console

from export import errors
from export.files import make_folder, sha256, write_beside, write_together
from export.graphs import onnx_files, rewrite
from export.plan import builder, calibration, command_line, lowering, profiles
from export.plan.builder import PlanError
from export.plan.provenance import PlanDescription, Profiles, builder_sha256, find_gpu, misfits, read
from export.repository import model_tensors
from export.verify import against_onnx


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        ExportError: with the one line that the user reads.
    """
    options = command_line.parse(arguments)
    console = Console(stderr=True)
    if options.target:
        builder.with_rtx_libraries()
    elif find_gpu() is None:
        raise PlanError(
            "found no NVIDIA GPU, and a plan is built on the kind of GPU that runs it: "
            "use a machine with one, or check the model without one by --target SM86"
        )
    if options.if_needed and options.output.is_file() and not options.model.exists():
        _check_without_model(options, console)
        return
    model, digest = onnx_files.load(options.model)
    with onnx_files.naming(options.model):
        graph, model = rewrite.import_standard(model)
    network_facts = _network_facts(model, options.model)
    trt = builder.load_tensorrt(rtx=bool(options.target))
    shapes = profiles.profiles(model, options.batch, options.shapes)
    find = partial(calibration.find, model, options, shapes, console)
    source = find() if options.precision == "int8" else None
    has_plugin = any(node.op_type == "DeformConv" for node in model.graph.node)
    here = _surroundings(options, trt, has_plugin=has_plugin)
    with onnx_files.naming(options.model):
        builder.refuse_unknown(trt, model)
        tensors = model_tensors.of_model(model)
    facts = _describe(here, tensors, digest, source, shapes, options)
    if options.if_needed and _is_current(options.output, facts, console):
        return
    if options.verify and source is None:
        source = find()
    console.print(
        f"building {options.output}: {facts.precision} for {facts.gpu or options.target}", soft_wrap=True
    )
    for file in filter(None, (options.output, options.timing_cache)):
        make_folder(file.parent)
    with onnx_files.naming(options.model):
        network = lowering.make(
            graph,
            options.precision,
            source.feeds(model) if source else (),
            keep_fp32=options.keep_fp32,
            fp32_offsets=options.fp32_offsets,
            int8_groups=options.int8_groups,
        )
        engine, timing_cache = builder.build(
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
        feeds = calibration.to_verify(network.reference, facts.profiles, source)
        tolerance = against_onnx.TOLERANCES[options.precision]
        differences = against_onnx.verify(
            network.reference, engine, feeds, tolerance, rounded=network.rounded
        )
        _report(differences, console)
    beside = options.output.with_suffix(".json")
    section = asdict(facts) | {"sha256": hashlib.sha256(engine).hexdigest()}
    text = json.dumps(network_facts | {"plan": section}, indent=1, ensure_ascii=False)
    # The description last: it must not call an older plan current.
    write_together({options.output: engine, beside: text.encode() + b"\n"})
    console.print(f"wrote {options.output} ({len(engine) / 2**20:.1f} MiB) and {beside.name}", soft_wrap=True)


def _describe(
    here: dict[str, str],
    tensors: model_tensors.ModelTensors,
    digest: str,
    source: calibration.Source | None,
    shapes: Profiles,
    options: argparse.Namespace,
) -> PlanDescription:
    return PlanDescription(
        **here,
        precision=options.precision,
        onnx_sha256=digest,
        calibration_sha256=source.digest() if source else "",
        optimization_level=options.optimization_level,
        profiles=shapes,
        keep_fp32=options.keep_fp32,
        fp32_offsets=options.fp32_offsets,
        int8_groups=options.int8_groups,
        tensors=json.loads(json.dumps(tensors.to_json())),
    )


def _surroundings(options: argparse.Namespace, trt: ModuleType, *, has_plugin: bool) -> dict[str, str]:
    plugin = builder.load_plugin(trt, options.plugin, rtx=bool(options.target)) if has_plugin else None
    gpu = None if options.target else find_gpu()
    capability = gpu.compute_capability if gpu else f"{options.target[2:-1]}.{options.target[-1]}"
    return {
        "tensorrt": f"RTX {trt.__version__}" if options.target else trt.__version__,
        "gpu": gpu.name if gpu else "",
        "compute_capability": capability,
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
    trt = builder.load_tensorrt(rtx=bool(options.target))
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


def _report(differences: list[against_onnx.Difference], console: Console) -> None:
    for difference in differences:
        console.print(str(difference), soft_wrap=True)
    failed = [difference.output for difference in differences if not difference.passed]
    if failed:
        names = ", ".join(dict.fromkeys(failed))
        raise PlanError(f"found no agreement with ONNX Runtime in {names} (above): the plan is not written")


def _network_facts(model: onnx.ModelProto, path: Path) -> dict[str, object]:
    try:
        description = onnx_files.description(model)
    except ValueError:  # not one of ours: there is nothing to say about it
        return {}
    if description.form == "detector":
        try:
            description.check_served(path)
        except ValueError as error:
            raise errors.UsageError(str(error)) from None
    return asdict(description)


def _read_timing_cache(path: Path | None) -> bytes | None:
    if path is None:
        return None
    return path.read_bytes() if path.is_file() else b""


if __name__ == "__main__":
    errors.run(main)
