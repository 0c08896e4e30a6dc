"""What each task answers beyond a detector: one module of the task's name, with a function `answers`."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from centernet_image.contract import BOXES, CLASSES, DETECTIONS, SCORES, TASKS
from centernet_image.description import Description
from centernet_image.geometry import points_to_image, vectors_to_image
from centernet_image.selection import select

DETECTOR = tuple(tensor.name for tensor in (BOXES, SCORES, CLASSES))


@dataclass(frozen=True)
class Peaks:
    """The best peaks of N pictures, in pixels of the frame.

    Attributes:
        tensors: By name: what the network answers, and what the requests say (`Task.requests`); [N, ...].
        image_sizes: Height and width of each picture, int [N, 2].
        network: What answered.
    """

    tensors: Mapping[str, np.ndarray]
    image_sizes: np.ndarray
    network: Description

    def points(self, name: str) -> np.ndarray:
        """A tensor of points [N, ..., 2] in pixels of the pictures."""
        return points_to_image(
            self.tensors[name], self.image_sizes, self.network.input_size, self.network.fit
        )

    def vectors(self, name: str) -> np.ndarray:
        """A tensor of distances [N, ..., 2] in pixels of the pictures."""
        return vectors_to_image(
            self.tensors[name], self.image_sizes, self.network.input_size, self.network.fit
        )


def answer(peaks: Peaks, *, thresholds: np.ndarray | float, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The answers of `DETECTIONS` and of the network's task, by name; rows beyond those that count are zero.

    Args:
        peaks: As the network gave them.
        thresholds: The lowest score that counts: one for all, or [N, 1].
        labels: object [C]: each class's name as bytes.

    Raises:
        ValueError: What a request says is impossible, or the peaks do not fit each other.
    """
    network = peaks.network
    detections = select(
        *(peaks.tensors[name] for name in DETECTOR),
        image_sizes=peaks.image_sizes,
        frame_size=network.input_size,
        thresholds=thresholds,
        labels=labels,
        fit=network.fit,
    )
    found = dict(zip((tensor.name for tensor in DETECTIONS), detections, strict=True))
    if TASKS[network.task].answers:
        module = import_module(f"{__name__}.{network.task}")
        further: dict[str, np.ndarray] = module.answers(peaks)
        beyond = np.arange(detections.scores.shape[1]) >= detections.num
        for array in further.values():
            array[beyond] = 0
        found |= further
    return found
