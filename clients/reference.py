"""The same detector in PyTorch, in this process: what the server's answers are measured against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from centernet_image import ImageError, decode, select, warp

from clients.coco import Annotations
from clients.detections import Detections
from clients.errors import CenterNetError, SourceError
from export import checkpoint
from export.contract import COCO_CLASSES, TOP_K
from export.detector import Detector


class Reference:
    """A checkpoint, run on one picture at a time, on the GPU if PyTorch has one.

    Args:
        path: The checkpoint.
        arch: Its architecture, or None to infer it.
        frame_size: Height and width of the network's input, the server's.
        annotations: Name the classes if the checkpoint does not: in the order of their category ids, as
            CenterNet's trainer numbers them.

    Raises:
        export.errors.ExportError: The checkpoint cannot be used.
        CenterNetError: The number of classes fits no names.
    """

    def __init__(
        self, path: Path, *, arch: str | None, frame_size: tuple[int, int], annotations: Annotations
    ) -> None:
        loaded = checkpoint.load(path, arch=arch)
        self.sha256 = loaded.sha256
        classes = loaded.heads["hm"]
        by_id = sorted(annotations.category_ids, key=annotations.category_ids.__getitem__)
        names = loaded.classes or (COCO_CLASSES if classes == len(COCO_CLASSES) else by_id)
        if len(names) != classes:
            raise CenterNetError(
                f"{path} has {classes} classes without names, {annotations.path} names {len(names)}"
            )
        self._labels = np.array([*(name.encode() for name in names), b""], dtype=object)
        self._frame_size = frame_size
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._detector = Detector(loaded.network, top_k=TOP_K).eval().to(self._device)

    def detect(self, content: bytes, *, threshold: float) -> Detections:
        """Finds the objects in an encoded picture as the server's models do, without a server.

        Raises:
            SourceError: It cannot be decoded.
        """
        try:
            image = decode(content)
        except ImageError as error:
            raise SourceError(str(error)) from error
        frame = torch.from_numpy(warp(image, self._frame_size)[np.newaxis])
        with torch.inference_mode():
            boxes, scores, classes = (
                output.cpu().numpy() for output in self._detector(frame.to(self._device))[:3]
            )
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
