"""The server's work in one process: decode, warp, network, postprocess; what serving is compared with."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from centernet_image import Detections, NetworkDescription, decode, select, warp

from export import contract, plan_engine

Network = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Frames uint8 [N, H, W, 3] to boxes [N, K, 4], scores [N, K] and classes [N, K]."""

OUTPUTS = [contract.BOXES.name, contract.SCORES.name, contract.CLASSES.name]


class Pipeline:
    """What the ensembles do, by the same functions, without a server."""

    def __init__(self, network: Network, description: NetworkDescription) -> None:
        self.network = network
        self.frame_size = description.frame_size
        self.labels = np.array([name.encode() for name in description.classes], object)
        # As the preprocess model has it: pictures run in parallel, OpenCV's functions do not.
        cv2.setNumThreads(1)
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def detect(self, pictures: Sequence[bytes]) -> Detections:
        """Encoded pictures to detections."""
        frames = np.empty((len(pictures), *self.frame_size, 3), np.uint8)
        sizes = np.empty((len(pictures), 2), np.int32)
        jobs = (pictures, frames, sizes)
        list(map(self._prepare, *jobs) if len(pictures) == 1 else self.pool.map(self._prepare, *jobs))
        return self.detect_frames(frames, sizes)

    def detect_frames(self, frames: np.ndarray, image_sizes: np.ndarray) -> Detections:
        """Frames [N, H, W, 3] of pictures of these sizes [N, 2] to detections."""
        boxes, scores, classes = self.network(frames)
        return select(
            boxes,
            scores,
            classes,
            image_sizes=image_sizes,
            frame_size=self.frame_size,
            thresholds=contract.SCORE_THRESHOLD,
            labels=self.labels,
        )

    def _prepare(self, picture: bytes, frame: np.ndarray, size: np.ndarray) -> None:
        image = decode(picture)
        size[:] = image.shape[:2]
        warp(image, self.frame_size, out=frame)


def onnxruntime_network(path: Path, *, threads: int, session: Mapping[str, str]) -> Network:
    """The ONNX file on ONNX Runtime's CPU provider, with the server's settings.

    Args:
        path: The ONNX file.
        threads: Threads per operator; 0 for one per core.
        session: ONNX Runtime's `session.*` options.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in session.items():
        options.add_session_config_entry(key, value)
    network = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda frames: network.run(OUTPUTS, {contract.FRAME.name: frames})


def tensorrt_network(path: Path) -> Network:
    """The plan on TensorRT, frames and answers in the host's memory; its plugin must be loaded already."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    runner = TrtRunner(EngineFromBytes(BytesFromPath(str(path))))
    runner.activate()

    def infer(frames: np.ndarray) -> list[np.ndarray]:
        outputs = runner.infer({contract.FRAME.name: frames})
        return [outputs[name] for name in OUTPUTS]

    return infer


class Engine:
    """A plan on the GPU's own memory, replayed as CUDA graphs: the most that any server can reach."""

    def __init__(self, plan: Path, plugin: Path | None) -> None:
        import cupy

        self._cupy, trt = cupy, plan_engine.load_tensorrt()
        plan_engine.load_plugin(trt, plugin)
        self._trt, self._runtime = trt, trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise plan_engine.PlanError(f"TensorRT {trt.__version__} cannot load {plan}")
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
