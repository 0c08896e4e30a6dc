"""A detector's plan on the GPU's own memory, by CuPy: a server's host need not have PyTorch."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from centernet_image import contract

from benchmarks.timing import times_ms
from export.plan import builder


class Engine:
    """A plan, ready to run.

    Args:
        plan: The file.
        plugin: Our library; see `export.plan.builder.load_plugin`.
        nvidia: The DCN layers are NVIDIA's plugin, which works on the default stream alone.

    Raises:
        PlanError: TensorRT or the plugin is not here, or the plan is another version's or GPU's.
        ImportError: There is no CuPy.
    """

    def __init__(self, plan: Path, plugin: Path | None = None, *, nvidia: bool = False) -> None:
        import cupy

        self.cupy, self.trt = cupy, builder.load_tensorrt()
        logger = self.trt.Logger(self.trt.Logger.ERROR)
        if nvidia:
            load_nvidia_plugins(self.trt)
        else:
            builder.load_plugin(self.trt, plugin)
        self._runtime = self.trt.Runtime(logger)
        self.engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self.engine is None:
            raise builder.PlanError(f"TensorRT {self.trt.__version__} cannot load {plan}")
        self.stream = cupy.cuda.Stream.null if nvidia else cupy.cuda.Stream(non_blocking=True)

    def bind(self, frames: np.ndarray, *, graph: bool, profiler: Any = None) -> "Execution":
        """A network for so many frames uint8 [N, H, W, 3], which its memory then holds; it has run once."""
        return Execution(self, frames, graph=graph, profiler=profiler)

    def bare(self) -> Callable[[int], None]:
        """Computes a batch of so many frames by a CUDA graph: the most that a server can reach."""
        bound: dict[int, Execution] = {}
        shape = self.engine.get_tensor_shape(contract.FRAME.name)[1:]

        def run(batch: int) -> None:
            if batch not in bound:
                frames = np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8)
                bound[batch] = self.bind(frames, graph=True)
            bound[batch]()
            self.stream.synchronize()

        return run

    def layers_ms(self, frames: np.ndarray, dcn_nodes: Sequence[str], *, seconds: float) -> dict[str, Any]:
        """Milliseconds per run in DCN layers (`dcn`) and all others (`other`): sums of each layer's median.

        Conversions of a DCN layer's tensors are its own. Profiling adds to each layer's time; the share is
        what counts.
        """
        profiler = _profiler(self.trt)
        run = self.bind(frames, graph=False, profiler=profiler)
        profiler.times.clear()

        def run_and_wait() -> None:
            run()
            self.stream.synchronize()

        times_ms(run_and_wait, seconds=seconds)
        layers = {layer: median(times) for layer, times in profiler.times.items()}
        dcn = sum(ms for layer, ms in layers.items() if any(mentions(layer, node) for node in dcn_nodes))
        return {"dcn": dcn, "other": sum(layers.values()) - dcn, "layers": layers}


class Execution:
    """Enqueues the network on the engine's stream when called; holds what a CUDA graph does not.

    Attributes:
        tensors: Inputs and outputs by name.
    """

    def __init__(self, engine: Engine, frames: np.ndarray, *, graph: bool, profiler: Any) -> None:
        self._engine, self._context = engine, engine.engine.create_execution_context()
        if self._context is None:
            raise builder.PlanError("TensorRT made no execution context: is there memory left?")
        if profiler is not None:
            self._context.profiler = profiler
        self._context.set_input_shape(contract.FRAME.name, tuple(frames.shape))
        self.tensors: dict[str, Any] = {}
        for index in range(engine.engine.num_io_tensors):
            name = engine.engine.get_tensor_name(index)
            dtype = np.dtype(engine.trt.nptype(engine.engine.get_tensor_dtype(name)))
            self.tensors[name] = engine.cupy.empty(tuple(self._context.get_tensor_shape(name)), dtype)
            self._context.set_tensor_address(name, self.tensors[name].data.ptr)
        self._graph: Any = None
        self.load(frames)
        # What is taken once is taken before the capture.
        self()
        engine.stream.synchronize()
        if graph:
            engine.stream.begin_capture()
            self()
            self._graph = engine.stream.end_capture()

    def __call__(self) -> None:
        """Runs it once, without waiting."""
        if self._graph is not None:
            self._graph.launch(self._engine.stream)
        elif not self._context.execute_async_v3(self._engine.stream.ptr):
            raise RuntimeError("TensorRT could not run the engine")

    def load(self, frames: np.ndarray) -> None:
        """Replaces the frames in its memory."""
        self.tensors[contract.FRAME.name].set(np.ascontiguousarray(frames), self._engine.stream)

    def outputs(self, names: Sequence[str]) -> list[np.ndarray]:
        """What the last run left."""
        self._engine.stream.synchronize()
        return [self.tensors[name].get() for name in names]


def mentions(layer: str, node: str) -> bool:
    """Whether a layer's name, which may join several nodes' and say what it does to them, has this node's.

    A name may go on where the node's ends (`/DeformConv` and `/DeformConv_2` are different nodes).
    """
    following = [part[:1] for part in layer.split(node)[1:]]
    return any(not (each.isalnum() or each == "_") for each in following)


def load_nvidia_plugins(trt: Any) -> None:
    """Registers TensorRT's own plugins; ModulatedDeformConv2d computes nothing without cuBLAS, in silence.

    Raises:
        PlanError: There is no cuBLAS of the name that it looks for.
    """
    try:
        ctypes.CDLL("libcublas.so.12", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        raise builder.PlanError(
            "NVIDIA's plugin needs libcublas.so.12 on LD_LIBRARY_PATH (a link to CUDA 13's library serves)"
        ) from None
    trt.init_libnvinfer_plugins(trt.Logger(trt.Logger.ERROR), "")


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):
        """Keeps every layer's times."""

        def __init__(self) -> None:
            super().__init__()
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(ms)

    return Profiler()
