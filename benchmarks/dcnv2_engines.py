"""The contenders of `benchmarks.dcnv2` that run an ONNX model of one layer."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from polygraphy.backend.trt import CreateConfig, Profile, engine_from_network, network_from_onnx_bytes
from torch import Tensor

from benchmarks.dcnv2_layers import Contender, Inputs, Run
from benchmarks.roofline import Shape
from benchmarks.tensorrt_engine import load_nvidia_plugins
from benchmarks.workers import SkippedError
from export.plan import builder


class OnnxRuntime(Contender):
    """ONNX Runtime's DeformConv on the CPU."""

    def prepare(self, shape: Shape, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""
        import onnxruntime

        model = layer_model("DeformConv", shape, sets[0]).SerializeToString()
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

        def run(inputs: Inputs) -> Tensor:
            arrays = {"input": inputs.input, "offset": inputs.offset, "mask": inputs.logits.sigmoid()}
            outputs = session.run(None, {name: tensor.numpy() for name, tensor in arrays.items()})
            return torch.from_numpy(outputs[0])

        return [partial(run, inputs) for inputs in sets]


class LayerEngine(Contender):
    """A layer in TensorRT: ModulatedDeformConv2d, which its parser makes of a DeformConv, or a convolution.

    The mask is computed beforehand. A plain convolution reads and writes channels-last, as inside a network:
    the limit.

    Raises:
        PlanError: If there is no TensorRT, or no cuBLAS of the name that NVIDIA's plugin asks for.
    """

    def __init__(self, *, plain: bool, tf32: bool) -> None:
        self._trt = builder.load_tensorrt()
        self._tf32, self.plain = tf32, plain
        # In a CUDA graph the output of NVIDIA's plugin is wrong.
        self.graph = plain
        if not plain:
            load_nvidia_plugins(self._trt)

    def prepare(self, shape: Shape, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""
        layout = torch.channels_last if self.plain else torch.contiguous_format
        bound = []
        for one in sets:
            tensors = {"input": one.input}
            if not self.plain:
                tensors |= {"offset": one.offset, "mask": one.logits.sigmoid()}
            tensors["output"] = torch.empty(
                (one.input.shape[0], shape.out_channels, *shape.size),
                dtype=one.input.dtype,
                device=one.input.device,
            )
            bound.append({name: each.contiguous(memory_format=layout) for name, each in tensors.items()})
        # Held by each run, as its tensors are.
        engine = self.build(shape, sets[0], {name: tuple(each.shape) for name, each in bound[0].items()})
        context = engine.create_execution_context()
        if context is None:
            raise SkippedError("TensorRT made no execution context: is there memory left?")
        for name, tensor in bound[0].items():
            if name != "output":
                context.set_input_shape(name, tuple(tensor.shape))
        return [partial(self._run, engine, context, tensors) for tensors in bound]

    @staticmethod
    def _run(engine: Any, context: Any, bound: dict[str, Tensor]) -> Tensor:
        for name, tensor in bound.items():
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        return bound["output"]

    def build(self, shape: Shape, inputs: Inputs, shapes: dict[str, tuple[int, ...]]) -> Any:
        """An engine for these shapes alone."""
        model = layer_model("Conv" if self.plain else "DeformConv", shape, inputs)
        built, network, parser = network_from_onnx_bytes(model.SerializeToString(), strongly_typed=True)
        profile = Profile()
        for name in shapes.keys() - {"output"}:
            profile.add(name, *[shapes[name]] * 3)
        if self.plain:
            half = inputs.input.dtype == torch.float16
            form = self._trt.TensorFormat.HWC8 if half else self._trt.TensorFormat.HWC
            for tensor in (network.get_input(0), network.get_output(0)):
                tensor.allowed_formats = 1 << int(form)
        config = CreateConfig(profiles=[profile], tf32=self._tf32)
        return engine_from_network((built, network, parser), config=config)


def layer_model(operator: str, shape: Shape, inputs: Inputs) -> onnx.ModelProto:
    """The layer as ONNX's `DeformConv` or `Conv`: weights inside, inputs of `Inputs`'s names, batch open."""
    dtype = {torch.float16: TensorProto.FLOAT16, torch.float32: TensorProto.FLOAT}.get(inputs.input.dtype)
    if dtype is None:
        raise SkippedError(f"not written for {inputs.input.dtype}")
    maps, names = {"input": shape.channels}, ["input", "weight", "bias"]
    groups: dict[str, Any] = {}
    if operator == "DeformConv":
        maps |= {"offset": 2 * shape.samples, "mask": shape.samples}
        names, groups = ["input", "weight", "offset", "bias", "mask"], {"offset_group": shape.offset_groups}
    node = helper.make_node(operator, names, ["output"], kernel_shape=[3, 3], pads=[1] * 4, **groups)
    described = {
        name: helper.make_tensor_value_info(name, dtype, ["batch", count, *shape.size])
        for name, count in (maps | {"output": shape.out_channels}).items()
    }
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(getattr(inputs, name).cpu().numpy()), name)
        for name in ("weight", "bias")
    ]
    output = described.pop("output")
    graph = helper.make_graph([node], "layer", list(described.values()), [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
