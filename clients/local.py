"""The server's work in one process: decode, warp, network, postprocess, by the same functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from centernet_image import contract
from centernet_image.codecs.common import ImageError
from centernet_image.decode import decode
from centernet_image.description import Description
from centernet_image.geometry import warp
from centernet_image.selection import select

from clients.detections import Detections
from clients.errors import CenterNetError, SourceError

Network = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Frames uint8 [N, H, W, 3] to boxes [N, K, 4], scores [N, K] and classes [N, K]."""

OUTPUTS = [contract.BOXES.name, contract.SCORES.name, contract.CLASSES.name]


class LocalDetector:
    """The server's models without a server.

    Args:
        network: In place of `centernet_network`.
        description: Its classes, the size of its frame, and how pictures are laid into that.
    """

    def __init__(self, network: Network, description: Description) -> None:
        self._network, self._description = network, description
        # As the preprocess model has it: pictures run in parallel, OpenCV's functions do not.
        cv2.setNumThreads(1)
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def detect(self, content: bytes, *, threshold: float = contract.SCORE_THRESHOLD) -> Detections:
        """Finds the objects in an encoded picture.

        Raises:
            SourceError: It cannot be decoded.
        """
        (found,) = self.detect_each([content], threshold=threshold)
        if isinstance(found, SourceError):
            raise found
        return found

    def detect_each(
        self, contents: Sequence[bytes], *, threshold: float = contract.SCORE_THRESHOLD
    ) -> list[Detections | SourceError]:
        """Finds the objects in encoded pictures, in one batch; those that cannot be decoded are errors."""
        frames = np.empty((len(contents), *self._description.input_size, 3), np.uint8)
        jobs = (contents, frames)
        sizes = list(
            map(self._prepare, *jobs) if len(contents) == 1 else self._pool.map(self._prepare, *jobs)
        )
        good = [number for number, size in enumerate(sizes) if not isinstance(size, SourceError)]
        answers = list[Detections | SourceError](sizes)  # type: ignore[arg-type]
        if good:
            kept = frames if len(good) == len(frames) else frames[good]
            found = self.detect_frames(
                kept, np.array([sizes[number] for number in good], np.int32), threshold
            )
            for number, detections in zip(good, found, strict=True):
                answers[number] = detections
        return answers

    def detect_frames(
        self, frames: np.ndarray, image_sizes: np.ndarray, threshold: float = contract.SCORE_THRESHOLD
    ) -> list[Detections]:
        """Finds the objects in frames [N, H, W, 3] of pictures of these sizes [N, 2]."""
        boxes, scores, classes = self._network(frames)
        found = select(
            boxes,
            scores,
            classes,
            image_sizes=image_sizes,
            frame_size=self._description.input_size,
            thresholds=threshold,
            labels=self._description.labels,
            fit=self._description.fit,
        )
        return [
            Detections(boxes[:num], scores[:num], ids[:num], tuple(label.decode() for label in labels[:num]))
            for (num,), boxes, scores, ids, labels in zip(*found, strict=True)
        ]

    def _prepare(self, content: bytes, frame: np.ndarray) -> tuple[int, int] | SourceError:
        """Writes the frame and returns height and width of the picture."""
        try:
            image = decode(content)
        except ImageError as error:
            return SourceError(str(error))
        warp(image, self._description.input_size, frame, self._description.fit)
        return image.shape[0], image.shape[1]


def of_file(path: Path, *, plugin: Path | None = None, gpu: bool = False) -> LocalDetector:
    """A network's file, with the description that the exporter wrote beside it.

    Args:
        path: `.plan` for TensorRT, anything else for ONNX Runtime.
        plugin: The plan's; see `export.plan.builder.load_plugin`.
        gpu: Whether ONNX Runtime takes the GPU.

    Raises:
        CenterNetError: It cannot be used; the text says why.
        export.errors.ExportError: TensorRT or its plugin is not here.
    """
    try:
        description = Description.read(path.with_suffix(".json"))
        if path.suffix == ".plan":
            from export.plan import builder

            builder.load_plugin(builder.load_tensorrt(), plugin)
            network = tensorrt_network(path)
        else:
            providers = ["CUDAExecutionProvider"] if gpu else []
            network = onnxruntime_network(path, providers=[*providers, "CPUExecutionProvider"])
    except (OSError, ValueError, RuntimeError) as error:
        raise CenterNetError(f"cannot use {path}: {error}") from error
    return LocalDetector(network, description)


def onnxruntime_network(
    path: Path,
    *,
    threads: int = 0,
    session: Mapping[str, str] | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> Network:
    """The ONNX file on ONNX Runtime.

    Args:
        path: The ONNX file.
        threads: Threads per operator; 0 for one per core.
        session: ONNX Runtime's `session.*` options.
        providers: What computes it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in (session or {}).items():
        options.add_session_config_entry(key, value)
    network = onnxruntime.InferenceSession(path, options, providers=list(providers))
    return lambda frames: network.run(OUTPUTS, {contract.FRAME.name: frames})


def tensorrt_network(path: Path) -> Network:
    """The plan on TensorRT, frames and answers in the host's memory; its plugin must be loaded already."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    runner = TrtRunner(EngineFromBytes(BytesFromPath(str(path))))
    runner.activate()

    def infer(frames: np.ndarray) -> list[np.ndarray]:
        outputs = runner.infer({contract.FRAME.name: frames})
        # Polygraphy keeps the memory for the next batch.
        return [outputs[name].copy() for name in OUTPUTS]

    return infer
