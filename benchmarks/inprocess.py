"""The server's work in one process: decode, warp, network, postprocess; what serving is compared with."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from centernet_image import Detections, NetworkDescription, decode, select, warp

from export import contract

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
    """The plan on TensorRT; its plugin must be loaded already (LD_PRELOAD)."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    runner = TrtRunner(EngineFromBytes(BytesFromPath(str(path))))
    runner.activate()

    def infer(frames: np.ndarray) -> list[np.ndarray]:
        outputs = runner.infer({contract.FRAME.name: frames})
        return [outputs[name] for name in OUTPUTS]

    return infer


def times_ms(work: Callable[[], object], *, seconds: float) -> list[float]:
    """Duration of each call during so many seconds, in milliseconds: at least three."""
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        durations.append(1000 * (time.perf_counter() - start))
    return durations
