"""A TensorRT engine on PyTorch's memory and streams."""

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import torch
from centernet_image import contract

from benchmarks.weights import pictures
from export.errors import ExportError
from export.files import sha256, write_together
from export.graphs import onnx_files, rewrite
from export.plan import builder, precision, profiles, provenance, quantize
from export.plan.builder import PlanError
from export.plan.provenance import PlanDescription, find_gpu

__all__ = ["Engine", "PlanError"]

DCN_OPERATORS = ("DeformConv", "DCNv2")


class Execution:
    """An execution context and its memory, alive as long as this is: a CUDA graph keeps neither.

    Attributes:
        tensors: Inputs and outputs by name.
    """

    def __init__(self, context: Any, tensors: dict[str, torch.Tensor]) -> None:
        self._context = context
        self._graph: Any = None
        self.tensors = tensors

    def __call__(self) -> None:
        """Enqueue it on CUDA's current stream."""
        if self._graph is not None:
            self._graph.replay()
        elif not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")

    def capture(self) -> None:
        """Run it once; from then on calls replay a CUDA graph of it."""
        self()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self()
        self._graph = graph


CALIBRATION_PICTURES = 16


class Engine:
    """An engine of a detector.

    Attributes:
        dcn_nodes: Names of the DCN nodes in the ONNX file.
        device: Where its tensors lie.
    """

    device = "cuda"

    def __init__(self, trt: Any, serialized: bytes, dcn_nodes: Sequence[str]) -> None:
        self.trt = trt
        self.dcn_nodes = dcn_nodes
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(serialized)
        if self.engine is None:
            raise PlanError(
                "TensorRT cannot load the plan: was it built by another version or for another GPU?"
            )

    @classmethod
    def load(
        cls,
        plan: Path,
        *,
        onnx_path: Path,
        batch: Sequence[int],
        plugin: str,
        library: Path | None,
        kind: str = "fp16",
    ) -> "Engine":
        """Load the plan; one that is not there, or not of this model, plugin and machine, is built and kept.

        Args:
            plan: The file, as `export.to_plan` makes it; a .json beside it describes it.
            onnx_path: What to build from: a detector with DeformConv nodes.
            batch: The batch sizes to serve.
            plugin: `dcnv2` (ours) or `nvidia`.
            library: Of our plugin, where it is not at its usual place.
            kind: fp32, tf32, fp16 or int8; "int8:backbone+heads" quantizes those groups alone.

        Raises:
            PlanError: There is no GPU, no TensorRT or no plugin, or it cannot be built.
        """
        gpu = find_gpu()
        if gpu is None or not torch.cuda.is_available():
            raise PlanError("found no NVIDIA GPU")
        trt = builder.load_tensorrt()
        model, digest = onnx_files.load(onnx_path)
        names = [node.name for node in model.graph.node if node.op_type in DCN_OPERATORS]
        loaded = None
        if plugin == "nvidia":
            load_cublas()
            trt.init_libnvinfer_plugins(trt.Logger(trt.Logger.ERROR), "")
        elif names:
            loaded = builder.load_plugin(trt, library)
        sizes = (min(batch), sorted(batch)[len(batch) // 2], max(batch))
        facts = PlanDescription(
            tensorrt=trt.__version__,
            gpu=gpu.name,
            compute_capability=gpu.compute_capability,
            precision=kind,
            plugin_sha256=sha256(loaded) if loaded else "",
            onnx_sha256=digest,
            profiles=profiles.profiles(model, sizes),
        )
        reasons = misfits(plan, facts)
        if reasons:
            print(f"building {plan}: {'; '.join(reasons)}", file=sys.stderr)
            made = with_precision(rewrite.to_deform_conv(model), kind)
            serialized, _ = builder.build(
                trt,
                # Left alone, DeformConv is NVIDIA's plugin to TensorRT's parser.
                made if plugin == "nvidia" else rewrite.to_dcnv2(made, tf32=kind == "tf32"),
                shapes=facts.profiles,
                tf32=kind != "fp32",
            )
            text = json.dumps({"plan": asdict(facts)}, indent=1)
            write_together({plan: serialized, plan.with_suffix(".json"): text.encode()})
        return cls(trt, plan.read_bytes(), names)

    def bind(self, frames: np.ndarray, *, profiler: Any = None) -> Execution:
        """A context for frames uint8 [N, H, W, 3], which its memory then holds."""
        context = self.engine.create_execution_context()
        if context is None:
            raise PlanError("TensorRT made no execution context: is there memory left?")
        if profiler is not None:
            context.profiler = profiler
        tensors = {contract.FRAME.name: torch.from_numpy(frames).to(self.device)}
        context.set_input_shape(contract.FRAME.name, tuple(frames.shape))
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            if name not in tensors:
                dtype = getattr(torch, np.dtype(self.trt.nptype(self.engine.get_tensor_dtype(name))).name)
                shape = tuple(context.get_tensor_shape(name))
                tensors[name] = torch.empty(shape, dtype=dtype, device=self.device)
            context.set_tensor_address(name, tensors[name].data_ptr())
        return Execution(context, tensors)

    def profile(self, frames: np.ndarray, *, seconds: float) -> dict[str, Any]:
        """Milliseconds per run in DCN layers and in all others: sums of each layer's median, and those alone.

        Profiling adds to each layer's time; the share is what counts.
        """
        profiler = _profiler(self.trt)
        run = self.bind(frames, profiler=profiler)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
            stream.synchronize()
            profiler.times.clear()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or not profiler.times:
                run()
                stream.synchronize()
        layers = {layer: median(times) for layer, times in profiler.times.items()}
        sums = {"dcn": 0.0, "other": 0.0}
        for layer, ms in layers.items():
            is_dcn = any(mentions(layer, node) for node in self.dcn_nodes)
            sums["dcn" if is_dcn else "other"] += ms
        return {**sums, "layers": layers}


def with_precision(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """A detector as `export.to_plan` gives it to TensorRT; see `Engine.load`."""
    if kind == "fp32":
        return model
    if kind == "tf32":
        return rewrite.to_dense_conv_transpose(model)
    if kind.startswith("int8"):
        groups = kind.partition(":")[2].split("+") if ":" in kind else quantize.QUANTIZED_GROUPS
        size = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[1:3]]
        frames = pictures(CALIBRATION_PICTURES, (size[0], size[1]), seed=3)
        feeds = ({contract.FRAME.name: frame[None]} for frame in frames)
        model = quantize.to_int8(model, feeds, groups=groups)
    return rewrite.to_dense_conv_transpose(precision.to_fp16(model))


def misfits(plan: Path, facts: PlanDescription) -> list[str]:
    """Why a plan must be built, by the .json beside it; empty if it fits."""
    if not plan.is_file():
        return [f"no {plan}"]
    try:
        return provenance.misfits(provenance.read(plan), asdict(facts))
    except ExportError as error:
        return [str(error)]


def mentions(layer: str, node: str) -> bool:
    """Whether a layer's name, which may join several nodes' and say what it does to them, has this node's.

    A name may go on where the node's ends (`/DeformConv` and `/DeformConv_2` are different nodes).
    """
    start = layer.find(node)
    while start >= 0:
        following = layer[start + len(node) : start + len(node) + 1]
        if not (following.isalnum() or following == "_"):
            return True
        start = layer.find(node, start + 1)
    return False


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):
        """Keeps every layer's times."""

        def __init__(self) -> None:
            super().__init__()
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(ms)

    return Profiler()


def load_cublas() -> None:
    """Load cuBLAS under CUDA 12's name: without it NVIDIA's plugin computes nothing, and does not say so.

    Raises:
        PlanError: There is none.
    """
    try:
        ctypes.CDLL("libcublas.so.12", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        raise PlanError(
            "NVIDIA's plugin needs libcublas.so.12 on LD_LIBRARY_PATH (a link to CUDA 13's library serves)"
        ) from None
