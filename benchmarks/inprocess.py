"""The bare engine that serving is compared with, and the clock for it."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from centernet_image import contract

from export.plan import builder


class Engine:
    """A plan on the GPU's own memory, replayed as CUDA graphs: the most that any server can reach."""

    def __init__(self, plan: Path, plugin: Path | None) -> None:
        import cupy

        self._cupy, trt = cupy, builder.load_tensorrt()
        builder.load_plugin(trt, plugin)
        self._trt, self._runtime = trt, trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise builder.PlanError(f"TensorRT {trt.__version__} cannot load {plan}")
        self._graphs: dict[int, Callable[[], None]] = {}

    def __call__(self, batch: int) -> None:
        """Computes one batch of so many frames, and waits for it."""
        if batch not in self._graphs:
            self._graphs[batch] = self._capture(batch)
        self._graphs[batch]()

    def _capture(self, batch: int) -> Callable[[], None]:
        cupy, context = self._cupy, self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        frame_shape = self._engine.get_tensor_shape(contract.FRAME.name)
        context.set_input_shape(contract.FRAME.name, (batch, *frame_shape[1:]))
        tensors = {}
        for name in names:
            dtype = self._trt.nptype(self._engine.get_tensor_dtype(name))
            tensors[name] = cupy.empty(tuple(context.get_tensor_shape(name)), dtype)
            context.set_tensor_address(name, tensors[name].data.ptr)
        frames = tensors[contract.FRAME.name]
        frames.set(np.random.default_rng(0).integers(0, 256, frames.shape, np.uint8))
        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        # What is taken once is taken before the capture.
        context.execute_async_v3(stream.ptr)
        stream.synchronize()
        stream.begin_capture()
        context.execute_async_v3(stream.ptr)
        graph = stream.end_capture()

        def run(keep: object = (context, tensors)) -> None:
            graph.launch(stream)
            stream.synchronize()

        return run


def times_ms(work: Callable[[], object], *, seconds: float) -> list[float]:
    """Duration of each call during so many seconds, in milliseconds: at least three."""
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        durations.append(1000 * (time.perf_counter() - start))
    return durations
