"""Texts of a model repository: config.pbtxt of a network, its preprocessing and their ensemble."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from centernet_image.contract import SCORE_THRESHOLD
from centernet_image.picture_tensor import PictureTensor
from google.protobuf import text_encoding

from export.plan.provenance import Profiles
from export.repository.model_tensors import ModelTensor, ModelTensors

MARK = "# Written by export.to_repository"

_QUEUE = """\
dynamic_batching {{
  # A batch is what has queued while the last one was computed: a lone request waits for nobody.
  max_queue_delay_microseconds: 0
  default_queue_policy {{
    max_queue_size: {size}
    timeout_action: REJECT
    default_timeout_microseconds: {timeout}
    allow_timeout_override: true
  }}
}}
"""


_STREAMS = """\
# It waits for the others. One, so that its limit is the model's.
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
sequence_batching {{
  # After so long without a frame a stream has ended: its next one has to start anew.
  max_sequence_idle_microseconds: 10000000
  # Frames of several streams go together, one of each at a time. More streams than max_streams, so that those
  # beyond it are refused (UNAVAILABLE) rather than kept waiting for another's end.
  oldest {{ max_candidate_sequences: 1024 }}
}}
# Streams whose last frame is kept, at a time.
parameters {{ key: "max_streams" value {{ string_value: "64" }} }}
# The default of the request parameter with the same name.
parameters {{ key: "score_threshold" value {{ string_value: "{threshold}" }} }}
"""


def network(
    name: str, tensors: ModelTensors, *, max_batch: int, cpu: bool, profiles: Profiles | None = None
) -> str:
    """The configuration of a network.

    Args:
        name: of the model.
        tensors: its inputs and outputs.
        max_batch: 0 where it has no batch of its own.
        cpu: ONNX Runtime on the CPU, else a TensorRT plan.
        profiles: the shapes that the plan serves, for the reader.
    """
    lines = [f"{MARK}: {'1/model.onnx on the CPU' if cpu else '1/model.plan'}."]
    for tensor, shapes in (profiles or {}).items():
        smallest, usual, largest = ("x".join(map(str, shapes[kind])) for kind in ("min", "opt", "max"))
        lines.append(f"# {quotable(tensor)}: {smallest} to {largest}, fastest at {usual}.")
    kind = 'backend: "onnxruntime"' if cpu else 'platform: "tensorrt_plan"'
    text = _head(lines, name, kind, tensors, max_batch)
    # On the CPU, too: with one, Triton 24.10 often lets a queued request wait for half a second.
    text += f"instance_group [ {{ kind: KIND_{'CPU' if cpu else 'GPU'} count: 2 }} ]\n"
    if max_batch:
        text += _QUEUE.format(size=64 if cpu else 8 * max_batch, timeout=60_000_000 if cpu else 10_000_000)
    if cpu:
        text += (
            "# Threads that wait, sleep: those that spin take the cores from decoding.\n"
            'parameters { key: "session.intra_op.allow_spinning" value { string_value: "0" } }\n'
        )
    return text


def preprocess(name: str, tensor: ModelTensor, picture: PictureTensor, *, max_batch: int) -> str:
    """The configuration of the model that makes a network's input of encoded pictures."""
    image, size = picture_tensors(max_batch)
    made = ModelTensor(tensor.name, tensor.dtype, ("batch" if max_batch else 1, *picture.shape))
    comment = f"{MARK}: encoded pictures to the network's input."
    text = _head([comment], name, 'backend: "python"', ModelTensors((image,), (made, size)), max_batch)
    text += "instance_group [ { kind: KIND_CPU count: 2 } ]\n"
    if max_batch:
        text += _QUEUE.format(size=192, timeout=10_000_000)
    wanted = quotable(json.dumps(asdict(picture)))
    parameters = {"max_bytes": 32 * 2**20, "max_pixels": 64 * 2**20, "min_side": 8, "picture": wanted}
    text += "# Limits on one picture, checked before it is decoded, and what the network wants of it.\n"
    for key, value in parameters.items():
        text += f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
    return text


def picture_ensemble(name: str, tensors: ModelTensors, *, max_batch: int) -> str:
    """The configuration that joins `NAME_preprocess` and `NAME_network`."""
    image, size = picture_tensors(max_batch)
    (fed,) = tensors.inputs
    outputs = [tensor.name for tensor in tensors.outputs]
    steps = (
        step(f"{name}_preprocess", ["image"], [fed.name, "image_size"]),
        step(f"{name}_network", [fed.name], outputs),
    )
    return ensemble(name, ModelTensors((image,), (*tensors.outputs, size)), steps, max_batch=max_batch)


def ensemble(name: str, tensors: ModelTensors, steps: Sequence[str], *, max_batch: int) -> str:
    """The configuration of an ensemble: an encoded picture in, what is made of it out."""
    comment = f"{MARK}: an encoded picture in, what the network makes of it out."
    head = _head([comment], name, 'platform: "ensemble"', tensors, max_batch)
    return "\n".join([f"{head}ensemble_scheduling {{", "  step [", ",\n".join(steps), "  ]", "}", ""])


def streams(name: str, tensors: ModelTensors, *, max_batch: int) -> str:
    """The configuration of the model that keeps the state of videos, one sequence each."""
    comment = f"{MARK}: a video's next picture in, its tracks out."
    head = _head([comment], name, 'backend: "python"', tensors, max_batch)
    return head + _STREAMS.format(threshold=SCORE_THRESHOLD)


def quotable(text: str) -> str:
    """A text as it stands between the quotes of a configuration."""
    return text_encoding.CEscape(text, as_utf8=True)


def picture_tensors(max_batch: int) -> tuple[ModelTensor, ModelTensor]:
    """An encoded picture and its size, of a model with batches or, where that is 0, without."""
    image = ModelTensor("image", "STRING", ("batch", 1)[not max_batch :])
    return image, ModelTensor("image_size", "INT32", ("batch", 2)[not max_batch :])


def _head(comments: Sequence[str], name: str, kind: str, tensors: ModelTensors, max_batch: int) -> str:
    """What every configuration begins with."""
    lines = [*comments, f'name: "{name}"', kind, f"max_batch_size: {max_batch}"]
    lines += tensor_lists(tensors.inputs, tensors.outputs, batched=max_batch > 0)
    return "\n".join([*lines, ""])


def step(model: str, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """One of an ensemble's steps; its tensors keep their names."""
    # Names that a network shares with the pictures' tensors are its own.
    maps = [f'      input_map {{ key: "{name}" value: "{name}" }}' for name in map(quotable, inputs)]
    maps += [f'      output_map {{ key: "{name}" value: "{name}" }}' for name in map(quotable, outputs)]
    return "\n".join(["    {", f'      model_name: "{model}"', "      model_version: -1", *maps, "    }"])


def tensor_lists(
    inputs: Iterable[ModelTensor], outputs: Iterable[ModelTensor], *, batched: bool
) -> list[str]:
    """The sections `input` and `output`."""
    lines = []
    for kind, tensors in (("input", inputs), ("output", outputs)):
        entries = ",\n".join(f"  {_tensor(tensor, batched=batched)}" for tensor in tensors)
        lines.append(f"{kind} [\n{entries}\n]")
    return lines


def _tensor(tensor: ModelTensor, *, batched: bool) -> str:
    sides = [side if isinstance(side, int) else -1 for side in tensor.shape[batched:]]
    # Triton knows no tensor without dimensions.
    dims = f"dims: [ {', '.join(map(str, sides))} ]" if sides else "dims: [ 1 ] reshape { shape: [ ] }"
    return f'{{ name: "{quotable(tensor.name)}" data_type: TYPE_{tensor.dtype} {dims} }}'
