"""The server's work in one process: decode, warp, network, postprocess, by the same functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from centernet_image import contract
from centernet_image.codecs.common import ImageError
from centernet_image.decode import decode
from centernet_image.description import Description
from centernet_image.geometry import warp
from centernet_image.tasks import Peaks, answer

from clients.detections import Detections
from clients.errors import CenterNetError, SourceError
from clients.tensors import CAMERA, TRACKS, Signature, detections

Network = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Frames uint8 [N, H, W, 3] to the `columns` of its task, [N, K, ...] each."""


class LocalDetector:
    """The server's models without a server.

    Args:
        network: In place of `centernet_network`.
        description: The network's.
        camera: The projection [3, 4], for networks that answer 3-D boxes.

    Raises:
        RejectedError: The network wants a camera and there is none, or the other way round.
    """

    def __init__(
        self, network: Network, description: Description, *, camera: np.ndarray | None = None
    ) -> None:
        self._network, self._description, self._camera = network, description, camera
        self._frame_size = description.input_size
        task = contract.TASKS[description.task]
        Signature(description.task, frozenset(each.name for each in task.requests)).check_camera(camera)
        self._columns = [tensor.name for tensor in task.columns]
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
        frames = np.empty((len(contents), *self._frame_size, 3), np.uint8)
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
            for number, one in zip(good, found, strict=True):
                answers[number] = one
        return answers

    def detect_frames(
        self, frames: np.ndarray, image_sizes: np.ndarray, threshold: float = contract.SCORE_THRESHOLD
    ) -> list[Detections]:
        """Finds the objects in frames [N, H, W, 3] of pictures of these sizes [N, 2]."""
        tensors = dict(zip(self._columns, self._network(frames), strict=True))
        if self._camera is not None:
            tensors[CAMERA.name] = np.stack([self._camera] * len(frames))
        found = answer(Peaks(tensors, image_sizes, self._description), thresholds=threshold)
        if self._description.task == "tracks":  # of a first frame
            classes = found[contract.DETECTION_CLASSES.name]
            found[TRACKS.name] = np.cumsum(np.ones_like(classes), axis=1, dtype=classes.dtype)
        return [
            detections({name: values[number] for name, values in found.items()})
            for number in range(len(frames))
        ]

    def _prepare(self, content: bytes, frame: np.ndarray) -> tuple[int, int] | SourceError:
        """Writes the frame and returns height and width of the picture."""
        try:
            image = decode(content)
        except ImageError as error:
            return SourceError(str(error))
        warp(image, self._frame_size, frame, self._description.fit)
        return image.shape[0], image.shape[1]


def of_file(
    path: Path, *, plugin: Path | None = None, gpu: bool = False, camera: np.ndarray | None = None
) -> LocalDetector:
    """A network's file, with the description that the exporter wrote beside it.

    Args:
        path: `.plan` for TensorRT, anything else for ONNX Runtime.
        plugin: The plan's; see `export.plan.builder.load_plugin`.
        gpu: Whether ONNX Runtime takes the GPU.
        camera: See `LocalDetector`.

    Raises:
        CenterNetError: It cannot be used; the text says why.
        export.errors.ExportError: TensorRT or its plugin is not here.
    """
    try:
        description = Description.read(path.with_suffix(".json"))
        if path.suffix == ".plan":
            from export.plan import builder

            builder.load_plugin(builder.load_tensorrt(), plugin)
            network = tensorrt_network(path, task=description.task)
        else:
            providers = ["CUDAExecutionProvider"] if gpu else []
            providers.append("CPUExecutionProvider")
            network = onnxruntime_network(path, providers=providers, task=description.task)
    except (OSError, ValueError, RuntimeError) as error:
        raise CenterNetError(f"cannot use {path}: {error}") from error
    return LocalDetector(network, description, camera=camera)


def inputs(task: contract.Task, names: Collection[str], frames: np.ndarray) -> dict[str, np.ndarray]:
    """What a network reads of frames that are each the first of a video: the same before, no objects.

    Args:
        task: Its task.
        names: Of its inputs.
        frames: [N, H, W, 3].
    """
    empty = np.zeros(frames.shape[:-1], np.float32)
    before = {each.name: frames if each.dtype == contract.FRAME.dtype else empty for each in task.inputs}
    return {contract.FRAME.name: frames} | {name: before[name] for name in before.keys() & {*names}}


def onnxruntime_network(
    path: Path,
    *,
    threads: int = 0,
    session: Mapping[str, str] | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    task: str = "detect",
) -> Network:
    """The ONNX file on ONNX Runtime.

    Args:
        path: The ONNX file.
        threads: Threads per operator; 0 for one per core.
        session: ONNX Runtime's `session.*` options.
        providers: What computes it.
        task: The network's, one of `contract.TASKS`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in (session or {}).items():
        options.add_session_config_entry(key, value)
    network = onnxruntime.InferenceSession(path, options, providers=list(providers))
    kind = contract.TASKS[task]
    outputs = [tensor.name for tensor in kind.columns]
    names = [tensor.name for tensor in network.get_inputs()]
    return lambda frames: network.run(outputs, inputs(kind, names, frames))


def tensorrt_network(path: Path, *, task: str = "detect") -> Network:
    """The plan on TensorRT, frames and answers in the host's memory; its plugin must be loaded already."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    runner = TrtRunner(EngineFromBytes(BytesFromPath(str(path))))
    runner.activate()
    kind = contract.TASKS[task]

    def infer(frames: np.ndarray) -> list[np.ndarray]:
        outputs = runner.infer(inputs(kind, runner.get_input_metadata(), frames))
        # Polygraphy keeps the memory for the next batch.
        return [outputs[tensor.name].copy() for tensor in kind.columns]

    return infer
