"""A model repository for any network: python -m export.to_repository MODEL FOLDER --name NAME."""

import argparse
import json
import re
import shutil
import signal
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from centernet_image.description import Description
from centernet_image.picture_tensor import PictureTensor
from rich.console import Console

from export import errors
from export.errors import ExportError, UsageError, one_line
from export.graphs import foreign_nodes, onnx_files, rewrite
from export.plan import picture_options, provenance
from export.plan.provenance import Profiles
from export.repository import config_pbtxt, model_tensors, task_models, usage
from export.repository.model_tensors import ModelTensors

MAX_BATCH = 8
LARGEST = 2**31 - 2**20
"""Bytes of an ONNX file; weights of a larger one lie beside it."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is to be served.

    Attributes:
        tensors: inputs and outputs.
        max_batch: 0 where it has no batch of its own.
        model: of an ONNX file.
        profiles: of a plan.
        description: of a network that was exported by this project, with its decode.
    """

    tensors: ModelTensors
    max_batch: int
    model: onnx.ModelProto | None = None
    profiles: Profiles | None = None
    description: Description | None = None


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        ExportError: with the one line that the user reads.
    """
    options = _parse(arguments)
    network = _read(options)
    around = options.picture or network.description is not None
    served = f"{options.name}_network" if around else options.name
    network = _beside(network, options.folder / served / "1" / "model.plan")
    picture = _picture(options, network) if options.picture else None
    models = [served]
    if picture:
        models += [f"{options.name}_preprocess", options.name]
    if network.description:
        models = [*task_models.check(options.name, network.tensors, network.description)]
        if not network.max_batch:
            raise UsageError("--max-batch: found 0, expected 1 or more for a network of this project")
    for name in models:
        _check_place(options.folder / name)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.folder, prefix=".") as scratch:
            new = Path(scratch)
            _write_network(new / served, options, network, options.folder / served / "1")
            if picture:
                _write_picture(new, options.name, network, picture)
            if network.description:
                task_models.write(new, options.name, network.description, max_batch=network.max_batch)
            _replace(options.folder, new, models)
    except OSError as error:
        raise ExportError(f"{options.folder}: cannot be written: {error.strerror or error}") from None
    console = Console(stderr=True)
    for line in usage.lines(
        options.name,
        options.folder,
        models,
        asked=_asked(options, network),
        onnx=options.model if network.model is not None else None,
        max_batch=network.max_batch,
        profiles=network.profiles,
    ):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export.to_repository", description=__doc__)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="an ONNX file, or a plan of export.to_plan")
    add("folder", type=Path, metavar="FOLDER", help="the model repository; made or added to")
    add("--name", required=True, help="what clients call the model")
    add("--max-batch", type=int, help=f"of an ONNX file with an open batch (default {MAX_BATCH}); 0: none")
    add("--picture", action="store_true", help="take encoded pictures (JPEG, PNG …) instead of tensors")
    picture_options.add_arguments(parser)
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", options.name):
        parser.error(f"--name: found {options.name!r}, expected letters, digits, _, - and .")
    if options.max_batch is not None and options.max_batch < 0:
        parser.error(f"--max-batch: found {options.max_batch}, expected 0 or more")
    if picture_options.given(options) and not options.picture:
        parser.error("--mean, --std, --layout, --color, --fit, --size: expected --picture beside them")
    return options


def _read(options: argparse.Namespace) -> Network:
    path = options.model
    if path.suffix == ".plan":
        network = _read_plan(path)
        _no_picture_option(options, network.description)
        return replace(network, max_batch=_max_batch(options, network.tensors, network.max_batch))
    model, _ = onnx_files.load(path)
    for name, operator in foreign_nodes.unknown_nodes(model):
        if not operator.startswith("com.microsoft::"):
            raise UsageError(
                f"{path}: {name}: found operator {operator}, expected one that ONNX Runtime has: make a plan "
                "of it with its plugin, and serve that"
            )
    with onnx_files.naming(path):
        model = rewrite.to_deform_conv(model)  # as ONNX Runtime takes it
        tensors = model_tensors.of_model(model)
        is_own = any((each.key, each.value) == ("form", "detector") for each in model.metadata_props)
        try:
            description = onnx_files.description(model) if is_own else None
        except ValueError as error:
            raise UsageError(str(error)) from None
    _no_picture_option(options, description)
    default = MAX_BATCH if tensors.is_batched else 0
    max_batch = _max_batch(options, tensors, default)
    return Network(tensors=tensors, model=model, max_batch=max_batch, description=description)


def _no_picture_option(options: argparse.Namespace, description: Description | None) -> None:
    if description and options.picture:
        raise UsageError(f"{options.model}: how it takes pictures is known: leave --picture out")


def _read_plan(path: Path) -> Network:
    if not path.is_file():
        raise UsageError(f"cannot read {path}: No such file or directory")
    section = provenance.read(path)
    if not section.get("tensors"):
        raise UsageError(
            f"{path.with_suffix('.json')} has no tensors: build the plan again by export.to_plan"
        )
    beside = path.with_suffix(".json")
    known = json.loads(beside.read_text(encoding="utf-8")).get("form") == "detector"
    try:
        tensors = ModelTensors.from_json(section["tensors"])
        profiles: Profiles = {each.name: section["profiles"][each.name] for each in tensors.inputs}
        # Triton sends any batch from 1 on to a model that has batches.
        batched = tensors.is_batched and all(shape["min"][0] == 1 for shape in profiles.values())
        max_batch = min(shape["max"][0] for shape in profiles.values()) if batched else 0
        description = Description.read(beside) if known else None
    except ValueError as error:  # says which file
        raise UsageError(one_line(error)) from None
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise UsageError(
            f"{beside} is damaged ({type(error).__name__} {error}): build the plan again by export.to_plan"
        ) from None
    return Network(tensors=tensors, profiles=profiles, max_batch=max_batch, description=description)


def _beside(network: Network, plan: Path) -> Network:
    """An ONNX file's network with the limits of the plan that is served already beside it."""
    if network.model is None or not plan.is_file():
        return network
    other = _read_plan(plan)
    if other.tensors != network.tensors:
        raise UsageError(
            f"{plan} is there and has other inputs or outputs: take another --name, or remove it"
        )
    return replace(network, profiles=other.profiles, max_batch=min(network.max_batch, other.max_batch))


def _max_batch(options: argparse.Namespace, tensors: ModelTensors, default: int) -> int:
    asked = options.max_batch
    if asked is None:
        return default
    if asked and not tensors.is_batched:
        shapes = ", ".join(f"{each.name} {list(each.shape)}" for each in (*tensors.inputs, *tensors.outputs))
        raise UsageError(
            f"--max-batch: found {asked}, expected 0: no open first dimension is common to all of {shapes}"
        )
    if options.model.suffix == ".plan" and asked > default:
        raise UsageError(f"--max-batch: found {asked}, expected at most {default}, the plan's")
    return asked


def _picture(options: argparse.Namespace, network: Network) -> PictureTensor:
    inputs = network.tensors.inputs
    if len(inputs) != 1:
        names = ", ".join(tensor.name for tensor in inputs)
        raise UsageError(f"--picture: found the inputs {names}, expected one: leave the option out")
    (tensor,) = inputs
    taken = {"image", "image_size"} & {each.name for each in (*inputs, *network.tensors.outputs)}
    if taken:
        raise UsageError(
            f"--picture: found a tensor {', '.join(taken)} in the model, which the ensemble has for the "
            "picture: rename it"
        )
    if (
        not network.max_batch
        and tensor.shape
        and tensor.shape[0] not in (1, *filter(_is_open, tensor.shape[:1]))
    ):
        raise UsageError(f"--picture: found the fixed batch {tensor.shape[0]}, expected 1 or an open one")
    picture = picture_options.picture_tensor(options, tensor.name, tensor.shape, tensor.dtype)
    if network.profiles:
        profile = network.profiles[tensor.name]
        if not all(
            low <= side <= high
            for low, side, high in zip(profile["min"][1:], picture.shape, profile["max"][1:], strict=True)
        ):
            raise UsageError(
                f"--size: found {picture.shape}, expected {profile['min'][1:]} to "
                f"{profile['max'][1:]}, the plan's"
            )
    return picture


def _asked(options: argparse.Namespace, network: Network) -> ModelTensors:
    """What a client gives and gets."""
    if network.description:
        return task_models.asked(options.name, network.description)
    image, _ = config_pbtxt.picture_tensors(network.max_batch)
    return replace(network.tensors, inputs=(image,)) if options.picture else network.tensors


def _is_open(side: int | str) -> bool:
    return isinstance(side, str)


def _check_place(folder: Path) -> None:
    """Refuses to replace what somebody else has made."""
    config = folder / "config.pbtxt"
    if folder.exists() and not (
        config.is_file() and config.read_bytes().startswith(config_pbtxt.MARK.encode())
    ):
        raise UsageError(f"{folder} is there and was not written by this command: take another --name")


def _replace(folder: Path, new: Path, models: Iterable[str]) -> None:
    """Gives the models of `new` their places, without an end by Ctrl-C or SIGTERM in between."""
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        for name in models:
            old = folder / name
            if old.exists():
                old.rename(new / f"{name}.old")
            (new / name).rename(old)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _write_network(new: Path, options: argparse.Namespace, network: Network, before: Path) -> None:
    """Both variants' configuration; what was there of the other variant stays."""
    version = new / "1"
    version.mkdir(parents=True)
    if before.is_dir():
        own = "model.plan" if network.model is None else "model.onnx"
        for path in before.iterdir():
            if not path.name.startswith(own):
                shutil.copy2(path, version / path.name)
    if network.model is None:
        shutil.copyfile(options.model, version / "model.plan")
        shutil.copyfile(options.model.with_suffix(".json"), version / "model.json")
    else:
        _save(network.model, version / "model.onnx")
        with onnx_files.naming(options.model):
            onnx_files.check_served(version / "model.onnx")
        if network.description and not (version / "model.plan").is_file():
            (version / "model.json").write_text(network.description.to_json(), encoding="utf-8")
    texts = {
        cpu: config_pbtxt.network(
            new.name,
            network.tensors,
            max_batch=network.max_batch,
            cpu=cpu,
            profiles=None if cpu else network.profiles,
        )
        for cpu in (False, True)
    }
    (new / "config.pbtxt").write_text(texts[False], encoding="utf-8")
    if (version / "model.onnx").is_file():
        (new / "configs").mkdir()
        (new / "configs" / "cpu.pbtxt").write_text(texts[True], encoding="utf-8")


def _save(model: onnx.ModelProto, path: Path) -> None:
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    beside = f"{path.name}.data" if size > LARGEST else None
    onnx.save_model(model, path, save_as_external_data=beside is not None, location=beside)


def _write_picture(new: Path, name: str, network: Network, picture: PictureTensor) -> None:
    (tensor,) = network.tensors.inputs
    folder = new / f"{name}_preprocess"
    config = config_pbtxt.preprocess(folder.name, tensor, picture, max_batch=network.max_batch)
    task_models.write_model(folder, config, "picture_preprocess.py")
    config = config_pbtxt.picture_ensemble(name, network.tensors, max_batch=network.max_batch)
    task_models.write_model(new / name, config)


if __name__ == "__main__":
    # As Ctrl-C, so that what is half written is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    errors.run(main)
