"""What stands around a network of this project: the detector's models, for its task and name."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from centernet_image import contract
from centernet_image.description import Description

from export.errors import UsageError
from export.repository import config_pbtxt
from export.repository.model_tensors import ModelTensor, ModelTensors

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "model_repository"
_PICTURES = MODELS / "centernet_preprocess" / "1" / "centernet_image"
_TEMPLATES = Path(__file__).parent / "templates"

_WITHOUT_CACHES = shutil.ignore_patterns("__pycache__")


def check(name: str, tensors: ModelTensors, description: Description) -> list[str]:
    """Compares a network with the contract of its task.

    Returns:
        The names of all models, the network's first.

    Raises:
        UsageError: It is another network than its description says.
    """
    task = contract.TASKS.get(description.task)
    if task is None:
        raise UsageError(f"task: found {description.task!r}, expected one of {', '.join(contract.TASKS)}")
    network, models = f"{name}_network", contract.models(name, task)
    for found, expected in zip((tensors.inputs, tensors.outputs), models[network], strict=True):
        has, wants = ({(each.name, each.dtype) for each in some} for some in (found, expected))
        optional = {each for each in wants if each[0] in task.optional}
        if not wants - optional <= has <= wants:
            raise UsageError(
                f"found the tensors {_list(has)}, expected {_list(wants)} of a network for "
                f"{description.task}: export it again"
            )
    return [network, *(model for model in models if model != network)]


def asked(name: str, description: Description) -> ModelTensors:
    """What a client of the task gives and gets."""
    return ModelTensors(*map(_batched, contract.models(name, contract.TASKS[description.task])[name]))


def write(new: Path, name: str, description: Description, *, max_batch: int) -> None:
    """Writes all models but the network itself.

    Args:
        new: The folder that they are written into.
        name: What clients call.
        description: Of the network.
        max_batch: The network's.
    """
    task = contract.TASKS[description.task]
    models = contract.models(name, task)
    stream = bool(task.inputs)
    for own in ("preprocess", "postprocess"):
        model = f"{name}_{own}"
        if model in models:
            source = MODELS / f"centernet_{own}"
            shutil.copytree(source, new / model, ignore=_WITHOUT_CACHES)
            text = (source / "config.pbtxt").read_text(encoding="utf-8")
            text = _adapted(text, model, *map(_batched, models[model]), max_batch=max_batch)
            if stream:  # Python keeps the frames.
                text += 'parameters { key: "frames" value { string_value: "host" } }\n'
            (new / model / "config.pbtxt").write_text(text, encoding="utf-8")
    tensors = asked(name, description)
    if stream:
        write_model(new / name, config_pbtxt.streams(name, tensors, max_batch=max_batch), "streams.py")
    else:
        steps = [
            config_pbtxt.step(model, *([tensor.name for tensor in some] for some in models[model]))
            for model in (f"{name}_preprocess", f"{name}_postprocess")
        ]
        write_model(new / name, config_pbtxt.ensemble(name, tensors, steps, max_batch=max_batch))


def write_model(folder: Path, config: str, template: str | None = None) -> None:
    """Writes a model of one of the templates, the picture code beside it, or without one an ensemble."""
    version = folder / "1"
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    if template:
        shutil.copyfile(_TEMPLATES / template, version / "model.py")
        shutil.copytree(_PICTURES, version / _PICTURES.name, ignore=_WITHOUT_CACHES)
    else:
        (version / ".gitkeep").touch()  # a folder without a file is lost by git and by object stores


def _batched(tensors: Sequence[contract.Tensor]) -> tuple[ModelTensor, ...]:
    return tuple(ModelTensor(each.name, each.dtype, ("batch", *each.shape)) for each in tensors)


def _adapted(
    text: str, name: str, inputs: Sequence[ModelTensor], outputs: Sequence[ModelTensor], *, max_batch: int
) -> str:
    """The detector's configuration with another name, other tensors and another batch."""
    own_inputs, own_outputs = config_pbtxt.tensor_lists(inputs, outputs, batched=True)
    for pattern, replacement in (
        (r"^name: [^\n]*$", f'name: "{name}"'),
        (r"^max_batch_size: [^\n]*$", f"max_batch_size: {max_batch}"),
        (r"^input \[.*?\]$", own_inputs),
        (r"^output \[.*?\]$", own_outputs),
    ):
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE | re.DOTALL)
    return f"{config_pbtxt.MARK} from the detector's.\n{text}"


def _list(tensors: set[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in sorted(tensors))
