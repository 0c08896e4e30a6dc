"""ONNX files of a single DCNv2 node."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

INPUTS = ("input", "offset", "mask", "weight", "bias", "scale")
TYPES = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
}


@dataclass(kw_only=True)
class Layer:
    """One DCNv2 layer; the defaults are a 3x3 one as CenterNet has it.

    Attributes:
        precision: A key of `TYPES`, of every tensor but offset and mask; int8 has FP32 bias and scale.
        offset_precision: Of offset and mask; `precision` if None.
        shape: The input's; None is a dynamic dimension.
        constant_weights: Whether weight and bias are initializers instead of inputs.
        attributes: Of the node, in place of a padding of 1.
        shapes: In place of the right ones, by input.
    """

    precision: str = "fp32"
    offset_precision: str | None = None
    shape: Sequence[int | None] = (2, 16, 24, 40)
    out_channels: int = 8
    kernel: tuple[int, int] = (3, 3)
    constant_weights: bool = True
    attributes: dict = field(default_factory=lambda: {"padding": 1})
    shapes: dict = field(default_factory=dict)

    def pair(self, name, default):
        value = self.attributes.get(name, default)
        return (value, value) if isinstance(value, int) else tuple(value[:2])

    def output_side(self, axis):
        side = self.shape[2 + axis]
        if side is None:
            return None
        stride, padding, dilation = (
            self.pair(name, default)[axis]
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        return (side + 2 * padding - dilation * (self.kernel[axis] - 1) - 1) // stride + 1

    def input_shapes(self):
        packed = self.attributes.get("packed_offset_mask", 0)
        batch, channels = self.shape[:2]
        sides = [self.output_side(0), self.output_side(1)]
        taps = self.kernel[0] * self.kernel[1] * self.attributes.get("deformable_group", 1)
        per_group = channels // self.attributes.get("groups", 1)
        ohwi = self.attributes.get("weight_ohwi", 0)
        shapes = {
            "input": list(self.shape),
            "offset": [batch, (3 if packed else 2) * taps, *sides],
            "mask": [batch, taps, *sides],
            "weight": [self.out_channels, *self.kernel, per_group]
            if ohwi
            else [self.out_channels, per_group, *self.kernel],
            "bias": [self.out_channels],
        }
        if packed:
            del shapes["mask"]
        if self.attributes.get("quantized"):
            shapes["scale"] = [self.out_channels]
        return shapes | self.shapes

    def kind(self, name):
        if name in ("offset", "mask") and self.offset_precision:
            return TYPES[self.offset_precision]
        return TYPES["fp32" if self.precision == "int8" and name in ("bias", "scale") else self.precision]

    def write(self, path: Path) -> Path:
        """Writes the model; its node is called `layer`."""
        shapes = self.input_shapes()
        inputs, constants = [], []
        for name, shape in shapes.items():
            if self.constant_weights and name in ("weight", "bias", "scale"):
                values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
                constants.append(_constant(name, values, self.kind(name)))
            else:
                sides = [
                    "batch" if axis == 0 and side is None else f"{name}_{axis}" if side is None else side
                    for axis, side in enumerate(shape)
                ]
                inputs.append(helper.make_tensor_value_info(name, self.kind(name), sides))
        wide = self.attributes.get("quantized") and not self.attributes.get("quantized_output")
        output = helper.make_tensor_value_info("output", self.kind("offset" if wide else "input"), None)
        node = helper.make_node("DCNv2", list(shapes), ["output"], name="layer", **self.attributes)
        graph = helper.make_graph([node], "layer", inputs, [output], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
        save(model, path)
        return path


def lopsided(count: int, *, batch: int | None = None, seed: int = 0) -> Iterator[Layer]:
    """Generated layers: height, width, stride, padding and dilation differ from each other on each axis."""
    random = np.random.default_rng(seed)
    while count:
        kernel, sides = (tuple(random.integers(low, high, 2)) for low, high in ((1, 5), (8, 24)))
        axes = [random.permutation(4)[:3] for _ in range(2)]  # stride, padding, dilation
        differ = all(a != b for a, b in (kernel, sides, *zip(*axes, strict=True)))
        if not differ or any(0 in (axis[0], axis[2]) for axis in axes):
            continue
        stride, padding, dilation = ([int(axis[i]) for axis in axes] for i in range(3))
        # The tensor-core kernels take the first of these, the plain kernel the others.
        groups, offset_groups, per_group = [(1, 2, 64), (2, 3, 4), (3, 2, 5), (1, 1, 24)][count % 4]
        channels = per_group * (offset_groups if groups == 1 else groups * offset_groups)
        layer = Layer(
            shape=(batch, channels, int(sides[0]), int(sides[1])),
            out_channels=groups * int(random.integers(1, 24)),
            kernel=(int(kernel[0]), int(kernel[1])),
            attributes={
                "stride": stride,
                "padding": padding,
                "dilation": dilation,
                "groups": groups,
                "deformable_group": offset_groups,
                "packed_offset_mask": int(random.integers(2)),
                "relu": int(random.integers(2)),
            },
        )
        if min(layer.output_side(0), layer.output_side(1)) > 0:
            count -= 1
            yield layer


def _constant(name, values, kind):
    if kind == TensorProto.BFLOAT16:
        return helper.make_tensor(name, kind, values.shape, values.ravel())
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), name)
