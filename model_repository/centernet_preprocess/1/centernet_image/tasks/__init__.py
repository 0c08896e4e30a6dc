"""What each task answers beyond a detector: one module of the task's name, with a function `answers`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from centernet_image.contract import BOXES, CLASSES, DETECTIONS, PEAKS, SCORES, TASKS, Task
from centernet_image.description import Description
from centernet_image.geometry import points_to_image, vectors_to_image
from centernet_image.selection import select

DETECTOR = tuple(tensor.name for tensor in (BOXES, SCORES, CLASSES))


@dataclass(frozen=True)
class Peaks:
    """The best peaks of N pictures, in pixels of the frame.

    Attributes:
        tensors: By name: what the network answers (`split`), and what the requests say (`Task.requests`);
            [N, ...].
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


def split(peaks: np.ndarray, task: Task) -> dict[str, np.ndarray]:
    """The tensors that a network's `PEAKS` [N, K, columns] is made of, by name; views, classes as floats.

    Raises:
        ValueError: It is not as wide as a network's of this task.
    """
    shapes = [tensor.shape[1:] for tensor in task.columns]
    widths = [abs(math.prod(shape)) for shape in shapes]
    step = sum(width for width, shape in zip(widths, shapes, strict=True) if -1 in shape)
    rest = peaks.shape[-1] - (sum(widths) - step)
    if rest < 0 or (rest % step if step else rest):
        multiple = f" and a multiple of {step}" if step else ""
        expected = f"{sum(widths) - step}{multiple}: {', '.join(tensor.name for tensor in task.columns)}"
        raise ValueError(f"{PEAKS.name}: found {peaks.shape[-1]} columns, expected {expected}")
    found, start = {}, 0
    for tensor, shape, width in zip(task.columns, shapes, widths, strict=True):
        sides = [side if side > 0 else rest // step for side in shape]
        end = start + (rest if -1 in shape else width)
        found[tensor.name] = peaks[..., start:end].reshape(*peaks.shape[:-1], *sides)
        start = end
    return found


def answer(peaks: Peaks, *, thresholds: np.ndarray | float) -> dict[str, np.ndarray]:
    """The answers of `DETECTIONS` and of the network's task, by name; rows beyond those that count are zero.

    Args:
        peaks: As the network gave them.
        thresholds: The lowest score that counts: one for all, or [N, 1].

    Raises:
        ValueError: What a request says is impossible, or the peaks do not fit each other.
    """
    network = peaks.network
    detections = select(
        *(peaks.tensors[name] for name in DETECTOR),
        image_sizes=peaks.image_sizes,
        frame_size=network.input_size,
        thresholds=thresholds,
        labels=network.labels,
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
