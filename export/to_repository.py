"""A model repository for any network: python -m export.to_repository MODEL FOLDER --name NAME."""

import argparse
import json
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from centernet_image.picture_tensor import PictureTensor
from rich.console import Console

from export import errors
from export.errors import ExportError, UsageError
from export.graphs import foreign_nodes, onnx_files, rewrite
from export.plan import picture_options, provenance
from export.plan.provenance import Profiles
from export.repository import config_pbtxt, model_tensors
from export.repository.model_tensors import ModelTensor, ModelTensors

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "model_repository" / "centernet_preprocess" / "1" / "centernet_image"
TEMPLATE = Path(__file__).parent / "repository/templates" / "picture_preprocess.py"
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
    """

    tensors: ModelTensors
    max_batch: int
    model: onnx.ModelProto | None = None
    profiles: Profiles | None = None


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        ExportError: with the one line that the user reads.
    """
    options = _parse(arguments)
    network = _read(options)
    served = f"{options.name}_network" if options.picture else options.name
    network = _beside(network, options.folder / served / "1" / "model.plan")
    picture = _picture(options, network) if options.picture else None
    models = [served, *([f"{options.name}_preprocess", options.name] if picture else [])]
    for name in models:
        _check_place(options.folder / name)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.folder, prefix=".") as scratch:
            new = Path(scratch)
            _write_network(new / served, options, network, options.folder / served / "1")
            if picture:
                _write_picture(new, options.name, network, picture)
            for name in models:
                old = options.folder / name
                if old.exists():
                    old.rename(new / f"{name}.old")
                (new / name).rename(old)
    except OSError as error:
        raise ExportError(f"{options.folder}: cannot be written: {error.strerror or error}") from None
    _say(options, network, models, Console(stderr=True), picture)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export.to_repository", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="an ONNX file, or a plan of export.to_plan")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the model repository; made or added to")
    parser.add_argument("--name", required=True, help="what clients call the model")
    parser.add_argument(
        "--max-batch", type=int, help=f"of an ONNX file with an open batch (default {MAX_BATCH}); 0: none"
    )
    parser.add_argument(
        "--picture", action="store_true", help="take encoded pictures (JPEG, PNG …) instead of tensors"
    )
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
        return replace(network, max_batch=_max_batch(options, network.tensors, network.max_batch))
    model, _ = onnx_files.load(path)
    for name, operator in foreign_nodes.unknown_nodes(model):
        if not operator.startswith("com.microsoft::"):
            raise UsageError(
                f"{path}: {name}: found operator {operator}, expected one that ONNX Runtime has: make a plan "
                "of it with its plugin, and serve that"
            )
    try:
        # As ONNX Runtime takes it.
        if any(node.op_type == "DCNv2" or foreign_nodes.is_deform_conv(node) for node in model.graph.node):
            model = rewrite.to_deform_conv(model)
        tensors = model_tensors.of_model(model)
    except ExportError as error:
        raise type(error)(f"{path}: {error}") from None
    default = MAX_BATCH if tensors.is_batched else 0
    return Network(tensors=tensors, model=model, max_batch=_max_batch(options, tensors, default))


def _read_plan(path: Path) -> Network:
    if not path.is_file():
        raise UsageError(f"cannot read {path}: No such file or directory")
    section = provenance.read(path)
    if not section.get("tensors"):
        raise UsageError(
            f"{path.with_suffix('.json')} has no tensors: build the plan again by export.to_plan"
        )
    tensors = ModelTensors.from_json(section["tensors"])
    profiles: Profiles = section["profiles"]
    # Triton sends any batch from 1 on to a model that has batches.
    batched = tensors.is_batched and all(shape["min"][0] == 1 for shape in profiles.values())
    max_batch = min(shape["max"][0] for shape in profiles.values()) if batched else 0
    return Network(tensors=tensors, profiles=profiles, max_batch=max_batch)


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


def _is_open(side: int | str) -> bool:
    return isinstance(side, str)


def _check_place(folder: Path) -> None:
    """Refuses to replace what somebody else has made."""
    config = folder / "config.pbtxt"
    if folder.exists() and not (
        config.is_file() and config.read_text(encoding="utf-8").startswith(config_pbtxt.MARK)
    ):
        raise UsageError(f"{folder} is there and was not written by this command: take another --name")


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
    folder = new / f"{name}_preprocess"
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(TEMPLATE, folder / "1" / "model.py")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PICTURES, folder / "1" / "centernet_image", ignore=ignore)
    (tensor,) = network.tensors.inputs
    text = config_pbtxt.preprocess(folder.name, tensor, picture, max_batch=network.max_batch)
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    (new / name / "1").mkdir(parents=True)
    # A folder without a file is lost by git and by object stores.
    (new / name / "1" / ".gitkeep").touch()
    text = config_pbtxt.ensemble(name, network.tensors, max_batch=network.max_batch)
    (new / name / "config.pbtxt").write_text(text, encoding="utf-8")


def _say(
    options: argparse.Namespace,
    network: Network,
    models: list[str],
    console: Console,
    picture: PictureTensor | None,
) -> None:
    folder, name = options.folder, options.name

    def line(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    line(f"wrote {', '.join(str(folder / model) for model in models)}")
    if network.model is not None:
        line(f"serve on a CPU:   tritonserver --model-repository={folder} --model-config-name=cpu")
        plan = folder / models[0] / "1" / "model.plan"
        line(f"serve on a GPU:   python -m export.to_plan {options.model} {plan} --verify, then as below")
    line(f"serve the plan:   LD_PRELOAD=…/libdcnv2.so tritonserver --model-repository={folder}")
    inputs = [ModelTensor("image", "STRING", (1,))] if picture else network.tensors.inputs
    shapes = " ".join(
        f"--shape {each.name}:{','.join(map(str, _example(each, network)))}"
        for each in inputs
        if any(isinstance(side, str) for side in each.shape[bool(network.max_batch) :])
    )
    data = " --input-data data.json" if picture else ""
    line(f"measure:          perf_analyzer -m {name} -u localhost:8001 -i grpc {shapes}{data}".rstrip())
    line("ask:")
    for text in _client(name, inputs, network, picture):
        line(f"    {text}")


def _example(tensor: ModelTensor, network: Network) -> list[int]:
    """A shape to ask with, without the batch where Triton adds it."""
    if network.profiles and tensor.name in network.profiles:
        return network.profiles[tensor.name]["opt"][bool(network.max_batch) :]
    sides = tensor.shape[bool(network.max_batch) :]
    return [side if isinstance(side, int) else 512 if len(tensor.shape) > 3 else 1 for side in sides]


def _client(
    name: str,
    inputs: tuple[ModelTensor, ...] | list[ModelTensor],
    network: Network,
    picture: PictureTensor | None,
) -> list[str]:
    lines = [
        "import numpy as np, tritonclient.grpc as grpc",
        'client = grpc.InferenceServerClient("localhost:8001")',
    ]
    made = []
    for index, tensor in enumerate(inputs):
        if picture:
            shape = [1, 1] if network.max_batch else [1]
            array = 'np.array([open("picture.jpg", "rb").read()], object)' + f".reshape({shape})"
            dtype = "BYTES"
        else:
            shape = [*([1] if network.max_batch else []), *_example(tensor, network)]
            kind = {"FP32": "float32", "FP16": "float16", "FP64": "float64"}.get(
                tensor.dtype, tensor.dtype.lower()
            )
            array, dtype = f'np.zeros({shape}, "{kind}")', tensor.dtype
        lines += [
            f'x{index} = grpc.InferInput("{tensor.name}", {json.dumps(shape)}, "{dtype}")',
            f"x{index}.set_data_from_numpy({array})",
        ]
        made.append(f"x{index}")
    lines.append(f'answer = client.infer("{name}", [{", ".join(made)}])')
    lines.append(f'print(answer.as_numpy("{network.tensors.outputs[0].name}").shape)')
    return lines


if __name__ == "__main__":
    errors.run(main)
