"""Inputs and outputs of a model as Triton's configuration has them."""

from dataclasses import asdict, dataclass
from typing import Any

import onnx
from onnx import TensorProto

from export.errors import UsageError
from export.plan.profiles import inputs_of, sides_of

TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "FP64",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}


@dataclass(frozen=True)
class ModelTensor:
    """An input or output: `dtype` as Triton writes it, `shape` with the batch; texts are open dimensions."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ModelTensors:
    """All inputs and outputs of a model."""

    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]

    @property
    def is_batched(self) -> bool:
        """Whether the first dimension of all is one open batch, so that Triton may join requests."""
        firsts = {tensor.shape[0] if tensor.shape else 1 for tensor in (*self.inputs, *self.outputs)}
        return len(firsts) == 1 and isinstance(next(iter(firsts)), str) and "?" not in firsts

    def to_json(self) -> dict[str, Any]:
        """As lists and dicts."""
        return asdict(self)

    @staticmethod
    def from_json(section: dict[str, Any]) -> "ModelTensors":
        """The inverse of `to_json`."""
        parts = (
            tuple(ModelTensor(each["name"], each["dtype"], tuple(each["shape"])) for each in section[part])
            for part in ("inputs", "outputs")
        )
        return ModelTensors(*parts)


def of_model(model: onnx.ModelProto) -> ModelTensors:
    """Those of an ONNX model; shapes that its file leaves out are inferred.

    Raises:
        UsageError: a tensor is of a type that Triton does not have, or of unknown dimensions.
    """
    outputs = list(model.graph.output)
    if not all(tensor.type.tensor_type.HasField("shape") for tensor in outputs):
        outputs = list(onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output)
    return ModelTensors(tuple(map(_tensor, inputs_of(model))), tuple(map(_tensor, outputs)))


def _tensor(tensor: onnx.ValueInfoProto) -> ModelTensor:
    kind = tensor.type.tensor_type.elem_type
    if kind not in TYPES:
        name = TensorProto.DataType.Name(kind) if tensor.type.HasField("tensor_type") else "no tensor"
        raise UsageError(f"{tensor.name} is {name}, expected one of {', '.join(TYPES.values())}")
    return ModelTensor(tensor.name, TYPES[kind], tuple(sides_of(tensor)))
