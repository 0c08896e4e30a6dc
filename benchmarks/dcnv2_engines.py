"""The contenders of `benchmarks.dcnv2` that run in TensorRT: engines of one layer."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from benchmarks import tensorrt_engine
from benchmarks.dcnv2_contenders import Contender, Inputs, Run, plain_truth
from benchmarks.roofline import Shape
from benchmarks.workers import SkippedError
from export.plan import builder


class OnnxRuntime(Contender):
    """ONNX Runtime's DeformConv on the CPU."""

    graph = False

    def prepare(self, shape: Shape, batch: int, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""
        import onnxruntime

        model = deform_conv_model(shape, sets[0]).SerializeToString()
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

        def run(inputs: Inputs) -> Tensor:
            arrays = {"input": inputs.input, "offset": inputs.offset, "mask": inputs.logits.sigmoid()}
            outputs = session.run(None, {name: tensor.numpy() for name, tensor in arrays.items()})
            return torch.from_numpy(outputs[0])

        return [partial(run, inputs) for inputs in sets]


class LayerEngine(Contender):
    """A layer in TensorRT, with one optimization profile for each batch size.

    Args:
        batches: That it will run with.
        tf32: Whether FP32 tensors may be rounded to TF32.

    Raises:
        PlanError: If there is no TensorRT.
    """

    channels_last = False

    def __init__(self, batches: Sequence[int], *, tf32: bool) -> None:
        self._batches = list(batches)
        self._tf32 = tf32
        self._engines: dict[Shape, Any] = {}
        self._trt = builder.load_tensorrt()
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)

    def model(self, shape: Shape, inputs: Inputs) -> onnx.ModelProto:
        """The layer as ONNX, weights inside, batch open."""
        raise NotImplementedError

    def tensors(self, inputs: Inputs) -> dict[str, Tensor]:
        """What the engine reads, by name."""
        raise NotImplementedError

    def prepare(self, shape: Shape, batch: int, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""
        if shape not in self._engines:
            runtime = self._trt.Runtime(self._logger)
            engine = runtime.deserialize_cuda_engine(self._build(shape, sets[0]))
            if engine is None:
                raise SkippedError(f"TensorRT cannot load the engine that it built for {shape}")
            self._engines[shape] = runtime, engine
        _, engine = self._engines[shape]
        context = engine.create_execution_context()
        if context is None:
            raise SkippedError("TensorRT made no execution context: is there memory left?")
        stream = torch.cuda.current_stream()
        context.set_optimization_profile_async(self._batches.index(batch), stream.cuda_stream)
        stream.synchronize()
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        runs: list[Run] = []
        for inputs in sets:
            bound = {
                name: tensor.contiguous(memory_format=layout) for name, tensor in self.tensors(inputs).items()
            }
            for name, tensor in bound.items():
                context.set_input_shape(name, tuple(tensor.shape))
            bound["output"] = torch.empty(
                (batch, shape.out_channels, *shape.size),
                dtype=inputs.input.dtype,
                device=inputs.input.device,
                memory_format=layout,
            )
            runs.append(partial(self._run, context, bound))
        return runs

    @staticmethod
    def _run(context: Any, bound: dict[str, Tensor]) -> Tensor:
        for name, tensor in bound.items():
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        return bound["output"]

    def _build(self, shape: Shape, inputs: Inputs) -> bytes:
        trt = self._trt
        trt_builder = trt.Builder(self._logger)
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = trt_builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(self.model(shape, inputs).SerializeToString()):
            raise SkippedError(parser.get_error(0).desc())
        if self.channels_last:
            half = inputs.input.dtype == torch.float16
            form = trt.TensorFormat.HWC8 if half else trt.TensorFormat.HWC
            for tensor in (network.get_input(0), network.get_output(0)):
                tensor.allowed_formats = 1 << int(form)
        config = trt_builder.create_builder_config()
        if hasattr(trt.BuilderFlag, "TF32") and not self._tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        for batch in self._batches:
            profile = trt_builder.create_optimization_profile()
            for name, tensor in self.tensors(inputs).items():
                profile.set_shape(name, *[(batch, *tensor.shape[1:])] * 3)
            config.add_optimization_profile(profile)
        serialized = trt_builder.build_serialized_network(network, config)
        if serialized is None:
            raise SkippedError(f"TensorRT built no engine for {shape}")
        return bytes(serialized)


class NvidiaPlugin(LayerEngine):
    """ModulatedDeformConv2d, which is what TensorRT makes of a DeformConv; its mask computed beforehand.

    Raises:
        PlanError: If there is no TensorRT, or no cuBLAS of the name that the plugin asks for.
    """

    # In a CUDA graph its output is wrong.
    graph = False

    def __init__(self, batches: Sequence[int], *, tf32: bool) -> None:
        super().__init__(batches, tf32=tf32)
        tensorrt_engine.load_cublas()
        self._trt.init_libnvinfer_plugins(self._logger, "")

    def tensors(self, inputs: Inputs) -> dict[str, Tensor]:
        """See `LayerEngine`."""
        return {"input": inputs.input, "offset": inputs.offset, "mask": inputs.logits.sigmoid()}

    def model(self, shape: Shape, inputs: Inputs) -> onnx.ModelProto:
        """See `LayerEngine`."""
        return deform_conv_model(shape, inputs)


class TensorRTConvolution(LayerEngine):
    """A plain 3x3 convolution of the same shape, channels-last at both ends: the limit."""

    channels_last = True
    truth = staticmethod(plain_truth)

    def tensors(self, inputs: Inputs) -> dict[str, Tensor]:
        """See `LayerEngine`."""
        return {"input": inputs.input}

    def model(self, shape: Shape, inputs: Inputs) -> onnx.ModelProto:
        """See `LayerEngine`."""
        return _model("Conv", ["input", "weight", "bias"], shape, inputs, {})


def deform_conv_model(shape: Shape, inputs: Inputs) -> onnx.ModelProto:
    """The layer as ONNX's DeformConv: inputs `input`, `offset`, `mask`, open batch, weights inside."""
    names = ["input", "weight", "offset", "bias", "mask"]
    return _model("DeformConv", names, shape, inputs, {"offset": 2 * shape.samples, "mask": shape.samples})


def _model(
    op: str, names: Sequence[str], shape: Shape, inputs: Inputs, channels: dict[str, int]
) -> onnx.ModelProto:
    dtype = {torch.float16: TensorProto.FLOAT16, torch.float32: TensorProto.FLOAT}.get(inputs.input.dtype)
    if dtype is None:
        raise SkippedError(f"not written for {inputs.input.dtype}")

    def described(name: str, count: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, ["batch", count, *shape.size])

    groups: dict[str, Any] = {"offset_group": shape.offset_groups} if op == "DeformConv" else {}
    node = helper.make_node(op, names, ["output"], kernel_shape=[3, 3], pads=[1] * 4, **groups)
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(getattr(inputs, name).cpu().numpy()), name)
        for name in ("weight", "bias")
    ]
    graph = helper.make_graph(
        [node],
        "layer",
        [described(name, count) for name, count in {"input": shape.channels, **channels}.items()],
        [described("output", shape.out_channels)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
