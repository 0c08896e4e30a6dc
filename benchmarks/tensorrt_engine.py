"""A TensorRT engine on PyTorch's memory and streams."""

import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import torch

from export import contract, plan_engine, precision, rewrite
from export.plan_engine import PlanError

__all__ = ["Engine", "PlanError"]

DCN_OPERATORS = ("DeformConv", "DCNv2")


class Engine:
    """An FP16 engine of a detector.

    Attributes:
        dcn_nodes: Names of the DCN nodes in the ONNX file.
    """

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
        cls, plan: Path, *, onnx_path: Path, batch: Sequence[int], plugin: str, library: Path | None
    ) -> "Engine":
        """Load the plan, or build and keep it if there is none.

        Args:
            plan: The file, in FP16 as `export.to_plan` makes it.
            onnx_path: What to build from: a detector with DeformConv nodes.
            batch: The batch sizes to serve.
            plugin: `dcnv2` (ours) or `nvidia`.
            library: Of our plugin, where it is not at its usual place.

        Raises:
            PlanError: There is no GPU, no TensorRT or no plugin, or it cannot be built.
        """
        if not torch.cuda.is_available():
            raise PlanError("found no NVIDIA GPU")
        trt = plan_engine.load_tensorrt()
        model = onnx.load(onnx_path)
        names = [node.name for node in model.graph.node if node.op_type in DCN_OPERATORS]
        if plugin == "nvidia":
            _load_cublas()
            trt.init_libnvinfer_plugins(trt.Logger(trt.Logger.ERROR), "")
        elif names:
            plan_engine.load_plugin(trt, library)
        if not plan.is_file():
            half = precision.to_fp16(rewrite.to_deform_conv(model))
            sizes = (min(batch), sorted(batch)[len(batch) // 2], max(batch))
            serialized, _ = plan_engine.build(
                trt,
                # Left alone, DeformConv is NVIDIA's plugin to TensorRT's parser.
                half if plugin == "nvidia" else rewrite.to_dcnv2(half),
                shapes=plan_engine.profiles(model, sizes),
                tf32=True,
            )
            partial = plan.with_name(plan.name + ".part")
            partial.write_bytes(serialized)
            partial.replace(plan)
        return cls(trt, plan.read_bytes(), names)

    def bind(
        self, frames: np.ndarray, *, profiler: Any = None
    ) -> tuple[Callable[[], None], dict[str, torch.Tensor]]:
        """A context for frames uint8 [N, H, W, 3].

        Returns:
            A call that runs it on CUDA's current stream, and all its tensors by name.
        """
        context = self.engine.create_execution_context()
        if profiler is not None:
            context.profiler = profiler
        tensors = {contract.FRAME.name: torch.from_numpy(frames).cuda()}
        context.set_input_shape(contract.FRAME.name, tuple(frames.shape))
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            if name not in tensors:
                dtype = getattr(torch, np.dtype(self.trt.nptype(self.engine.get_tensor_dtype(name))).name)
                tensors[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda")
            context.set_tensor_address(name, tensors[name].data_ptr())

        def run() -> None:
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise RuntimeError("TensorRT could not run the engine")

        return run, tensors

    def profile(self, frames: np.ndarray, *, seconds: float) -> dict[str, float]:
        """Milliseconds per run in DCN layers and in all others: sums of each layer's median.

        Profiling adds to each layer's time; the share is what counts.
        """
        profiler = _profiler(self.trt)
        run, _ = self.bind(frames, profiler=profiler)
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
        sums = {"dcn": 0.0, "other": 0.0}
        for layer, times in profiler.times.items():
            is_dcn = any(mentions(layer, node) for node in self.dcn_nodes)
            sums["dcn" if is_dcn else "other"] += median(times)
        return sums


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


def _load_cublas() -> None:
    """NVIDIA's plugin opens libcublas.so.12 itself, computes nothing without it, and does not say so."""
    try:
        ctypes.CDLL("libcublas.so.12", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        raise PlanError(
            "NVIDIA's plugin needs libcublas.so.12 on LD_LIBRARY_PATH (a link to CUDA 13's library serves)"
        ) from None
