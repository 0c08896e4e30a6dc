"""What `export.to_repository` tells: how to serve, measure and ask what it has written."""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from centernet_image.contract import TASKS

from export.plan.provenance import Profiles
from export.repository.model_tensors import ModelTensor, ModelTensors

PICTURE = 'np.array([open("picture.jpg", "rb").read()], object)'
CAMERA = 'np.array([[700, 0, 640, 0], [0, 700, 360, 0], [0, 0, 1, 0]], "float32")'


def lines(
    name: str,
    folder: Path,
    models: Sequence[str],
    *,
    asked: ModelTensors,
    onnx: Path | None,
    max_batch: int,
    profiles: Profiles | None,
) -> Iterator[str]:
    """The text, line by line.

    Args:
        name: What clients call.
        folder: The model repository.
        models: What was written, the network first.
        asked: What a client gives and gets.
        onnx: What the network was made of, if not of a plan.
        max_batch: 0 where there is no batch.
        profiles: Of a plan.
    """
    yield f"wrote {', '.join(str(folder / model) for model in models)}"
    if onnx:
        yield f"serve on a CPU:   tritonserver --model-repository={folder} --model-config-name=cpu"
        plan = folder / models[0] / "1" / "model.plan"
        yield f"serve on a GPU:   python -m export.to_plan {onnx} {plan} --verify, then as below"
    yield f"serve the plan:   LD_PRELOAD=…/libdcnv2.so tritonserver --model-repository={folder}"
    batched = max_batch > 0
    shapes = " ".join(
        f"--shape {shlex.quote(each.name)}:{','.join(map(str, _example(each, batched, profiles)))}"
        for each in asked.inputs
        if any(isinstance(side, str) for side in each.shape[batched:])
    )
    data = " --input-data data.json" if any(each.dtype == "STRING" for each in asked.inputs) else ""
    yield f"measure:          perf_analyzer -m {name} -u localhost:8001 -i grpc {shapes}{data}".rstrip()
    yield "ask:"
    for text in _client(name, asked, batched, profiles):
        yield f"    {text}"


def _example(tensor: ModelTensor, batched: bool, profiles: Profiles | None) -> list[int]:
    """A shape to ask with, without the batch where Triton adds it."""
    if profiles and tensor.name in profiles:
        return profiles[tensor.name]["opt"][batched:]
    sides = tensor.shape[batched:]
    return [side if isinstance(side, int) else 512 if len(tensor.shape) > 3 else 1 for side in sides]


def _client(name: str, asked: ModelTensors, batched: bool, profiles: Profiles | None) -> Iterator[str]:
    yield "import numpy as np, tritonclient.grpc as grpc"
    yield 'client = grpc.InferenceServerClient("localhost:8001")'
    for index, tensor in enumerate(asked.inputs):
        shape = [*([1] if batched else []), *_example(tensor, batched, profiles)]
        kind = {"FP32": "float32", "FP16": "float16", "FP64": "float64"}.get(
            tensor.dtype, tensor.dtype.lower()
        )
        value = f'np.zeros({shape}, "{kind}")'
        if tensor.dtype == "STRING":
            value = f"{PICTURE}.reshape({shape})"
        elif (tensor.name, tensor.shape[1:]) == ("camera", (3, 4)):  # zeros project nothing
            value = f"{CAMERA}.reshape({shape})"
        dtype = "BYTES" if tensor.dtype == "STRING" else tensor.dtype
        yield f'x{index} = grpc.InferInput({json.dumps(tensor.name)}, {json.dumps(shape)}, "{dtype}")'
        yield f"x{index}.set_data_from_numpy({value})"
    given = ", ".join(f"x{index}" for index in range(len(asked.inputs)))
    tracked = {tensor.name for tensor in asked.outputs} >= {tensor.name for tensor in TASKS["tracks"].answers}
    sequence = ", sequence_id=1, sequence_start=True, sequence_end=True" if tracked else ""
    yield f'answer = client.infer("{name}", [{given}]{sequence})'
    yield f"print(answer.as_numpy({json.dumps(asked.outputs[0].name)}).shape)"
