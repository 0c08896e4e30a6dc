"""The same detector in PyTorch, in this process: what the server's answers are measured against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from centernet_image import contract
from centernet_image.contract import COCO_CLASSES, Normalisation
from centernet_image.description import Description

from clients.annotations import Annotations, numbers_first
from clients.errors import CenterNetError
from clients.local import LocalDetector, inputs
from export import checkpoint, tasks
from export.detector import Detector


class Reference(LocalDetector):
    """A checkpoint in PyTorch, in FP32, on the GPU if PyTorch has one.

    Args:
        path: The checkpoint.
        arch: Its architecture, or None to infer it.
        frame_size: Height and width of the network's input, the server's.
        top_k: Detections per picture, the server's.
        normalisation: What it was trained on; by default what the original's network of its task was.
        fit: How pictures are laid into the frame; by default as its task's original does.
        camera: See `LocalDetector`.
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
        top_k: int = contract.TOP_K,
        annotations: Annotations,
        normalisation: Normalisation | None = None,
        fit: str | None = None,
        camera: np.ndarray | None = None,
    ) -> None:
        loaded = checkpoint.load(path, arch=arch)
        self.sha256 = loaded.sha256
        classes = loaded.heads.get("hm", 0)
        ids = annotations.category_ids
        by_id = sorted(ids, key=lambda name: numbers_first(ids[name]))
        names = loaded.classes or (COCO_CLASSES if classes == len(COCO_CLASSES) else by_id)
        if len(names) != classes:
            raise CenterNetError(
                f"{path} has {classes} classes without names, {annotations.path} names {len(names)}"
            )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.allow_tf32 = False  # PyTorch's default, which no FP32 engine is held to
        task = tasks.choose(loaded.heads, stems=loaded.network.stems)
        kind, answered = tasks.TASKS[task], contract.TASKS[task]
        detector = Detector(
            loaded.network,
            top_k=top_k,
            normalisation=normalisation or kind.normalisation,
            color=kind.color,
            task=task,
        )
        detector.eval().to(device)

        def network(frames: np.ndarray) -> list[np.ndarray]:
            # The detector leaves what the network has no stem for.
            given = inputs(answered, [tensor.name for tensor in answered.inputs], frames)
            tensors = {name: torch.from_numpy(each).to(device) for name, each in given.items()}
            with torch.inference_mode():
                return [output.cpu().numpy() for output in detector(**tensors)[: len(answered.columns)]]

        description = Description(
            classes=tuple(names), input_size=frame_size, top_k=top_k, task=task, fit=fit or answered.fit
        )
        super().__init__(network, description, camera=camera)
