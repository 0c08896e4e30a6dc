"""The same detector in PyTorch, in this process: what the server's answers are measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from centernet_image import ImageError, decode, select, warp

from clients.annotations import Annotations, numbers_first
from clients.detections import Detections
from clients.errors import CenterNetError, SourceError
from export import checkpoint
from export.contract import COCO, COCO_CLASSES, TOP_K, Normalisation
from export.detector import Detector

Network = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Frames uint8 [N, H, W, 3] to boxes [N, K, 4], scores [N, K] and classes [N, K]."""


class LocalDetector:
    """The server's models without a server.

    Args:
        network: In place of `centernet_network`.
        classes: Names, in the order of the network's class indices.
        frame_size: Height and width of the network's input.
    """

    def __init__(self, network: Network, *, classes: Sequence[str], frame_size: tuple[int, int]) -> None:
        self._network = network
        self._labels = np.array([name.encode() for name in classes], dtype=object)
        self._frame_size = frame_size

    def detect(self, content: bytes, *, threshold: float) -> Detections:
        """Finds the objects in an encoded picture.

        Raises:
            SourceError: It cannot be decoded.
        """
        try:
            image = decode(content)
        except ImageError as error:
            raise SourceError(str(error)) from error
        boxes, scores, classes = self._network(warp(image, self._frame_size)[np.newaxis])
        found = select(
            boxes,
            scores,
            classes,
            image_sizes=np.array([image.shape[:2]], np.int32),
            frame_size=self._frame_size,
            thresholds=threshold,
            labels=self._labels,
        )
        count = int(found.num[0, 0])
        labels = tuple(label.decode() for label in found.labels[0, :count])
        return Detections(found.boxes[0, :count], found.scores[0, :count], found.classes[0, :count], labels)


class Reference(LocalDetector):
    """A checkpoint in PyTorch, in FP32, on the GPU if PyTorch has one.

    Args:
        path: The checkpoint.
        arch: Its architecture, or None to infer it.
        frame_size: Height and width of the network's input, the server's.
        normalisation: What it was trained on.
        annotations: Name the classes if the checkpoint does not: in the order of their category ids, as
            CenterNet's trainer numbers them.

    Raises:
        export.errors.ExportError: The checkpoint cannot be used.
        CenterNetError: The number of classes fits no names.
    """

    def __init__(
        self,
        path: Path,
        *,
        arch: str | None,
        frame_size: tuple[int, int],
        annotations: Annotations,
        normalisation: Normalisation = COCO,
    ) -> None:
        loaded = checkpoint.load(path, arch=arch)
        self.sha256 = loaded.sha256
        classes = loaded.heads["hm"]
        ids = annotations.category_ids
        by_id = sorted(ids, key=lambda name: numbers_first(ids[name]))
        names = loaded.classes or (COCO_CLASSES if classes == len(COCO_CLASSES) else by_id)
        if len(names) != classes:
            raise CenterNetError(
                f"{path} has {classes} classes without names, {annotations.path} names {len(names)}"
            )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.allow_tf32 = False  # PyTorch's default, which no FP32 engine is held to
        detector = Detector(loaded.network, top_k=TOP_K, normalisation=normalisation).eval().to(device)

        def network(frames: np.ndarray) -> list[np.ndarray]:
            with torch.inference_mode():
                return [output.cpu().numpy() for output in detector(torch.from_numpy(frames).to(device))[:3]]

        super().__init__(network, classes=names, frame_size=frame_size)
