"""A model's tensors: what a request has, and what is read from its answer."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from centernet_image import contract

from clients.detections import EXTRAS, Detections
from clients.errors import RejectedError

T = TypeVar("T")
(CAMERA,) = contract.TASKS["boxes3d"].requests
(TRACKS,) = contract.TASKS["tracks"].answers


class Step(NamedTuple):
    """A picture's place in one of Triton's sequences.

    Attributes:
        sequence: The sequence's id, not 0.
        start: Whether it is the first.
        end: Whether it is the last.
    """

    sequence: int
    start: bool = True
    end: bool = True

    @classmethod
    def alone(cls) -> Step:
        """A sequence of one picture."""
        return cls(secrets.randbits(63) | 1)

    @classmethod
    def each(cls, frames: Iterable[T]) -> Iterator[tuple[T, Step]]:
        """Frames with their steps of a new sequence; each is held back until the next is there."""
        sequence, start, nothing = secrets.randbits(63) | 1, True, object()
        for frame, following in pairwise(chain(frames, [nothing])):
            yield frame, cls(sequence, start, following is nothing)  # type: ignore[misc]
            start = False


@dataclass(frozen=True)
class Signature:
    """What a model takes and answers, by its metadata.

    Attributes:
        model: Its name.
        tensors: Names of its inputs and outputs.
    """

    model: str
    tensors: frozenset[str]

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Signature:
        """Of Triton's metadata."""
        tensors = [*metadata.get("inputs", []), *metadata.get("outputs", [])]
        return cls(metadata["name"], frozenset(tensor["name"] for tensor in tensors))

    @property
    def remembers(self) -> bool:
        """Whether it keeps something from frame to frame: its pictures come in sequences."""
        return TRACKS.name in self.tensors

    @property
    def takes_frames(self) -> bool:
        """Whether an ensemble for warped frames stands beside it: a plain detector's does."""
        return self.tensors.isdisjoint(tensor.name for tensor in (CAMERA, *EXTRAS.values()))

    def check_camera(self, camera: np.ndarray | None) -> None:
        """Refuses a request that the server would not understand.

        Raises:
            RejectedError: The model wants a camera and there is none, or the other way round.
        """
        wants = CAMERA.name in self.tensors
        if wants and camera is None:
            raise RejectedError(
                f"model '{self.model}' answers 3-D boxes, expected the camera's projection (--camera)"
            )
        if camera is not None and not wants:
            raise RejectedError(f"model '{self.model}' answers no 3-D boxes: leave the camera out (--camera)")


def input_of(module: Any, tensor: contract.Tensor, shape: tuple[int, ...]) -> Any:
    """The `InferInput` of tritonclient's `module` for a tensor, without data."""
    datatype = "BYTES" if tensor.dtype == "STRING" else tensor.dtype
    return module.InferInput(tensor.name, list(shape), datatype)


def filled(module: Any, tensor: contract.Tensor, array: np.ndarray) -> Any:
    """The same with its data."""
    made = input_of(module, tensor, array.shape)
    made.set_data_from_numpy(array)
    return made


def serialized(picture: bytes) -> list[np.ndarray]:
    """The bytes of an encoded picture in Triton's form for strings, in parts."""
    return [np.frombuffer(struct.pack("<I", len(picture)), np.uint8), np.frombuffer(picture, np.uint8)]


def encoded(pixels: np.ndarray) -> bytes:
    """Pixels uint8 [height, width, 3] BGR as a file that loses nothing and takes no time: BMP."""
    import cv2

    return cv2.imencode(".bmp", pixels)[1].tobytes()


def warped(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The network's frame, uint8 [1, H, W, 3], of pixels uint8 [height, width, 3]."""
    from centernet_image.geometry import warp  # brings OpenCV, which encoded pictures do without

    return warp(pixels, size)[np.newaxis]


def parse(result: Any) -> Detections:
    """The detections of tritonclient's result for one picture."""
    tensors = {
        tensor.name: result.as_numpy(tensor.name) for tensor in (*contract.DETECTIONS, *EXTRAS.values())
    }
    return detections({name: array[0] for name, array in tensors.items() if array is not None})


def detections(tensors: Mapping[str, np.ndarray]) -> Detections:
    """The detections that an ensemble's output tensors, by name, hold for one picture.

    Raises:
        RejectedError: They are not a detector's.
    """
    if missing := [tensor.name for tensor in contract.DETECTIONS if tensor.name not in tensors]:
        raise RejectedError(
            f"the model answers no {missing[0]}, expected an ensemble of detections, like centernet (--model)"
        )
    count = int(tensors[contract.NUM_DETECTIONS.name].flat[0])
    xyxy, scores, class_ids, labels = (tensors[tensor.name][:count] for tensor in contract.DETECTIONS[1:])
    extras = {name: tensors[tensor.name][:count] for name, tensor in EXTRAS.items() if tensor.name in tensors}
    return Detections(xyxy, scores, class_ids, tuple(map(_text, labels)), **extras)


def _text(label: bytes) -> str:
    """UTF-8; other bytes, which no server of this project sends, stay visible."""
    return label.decode("utf-8", "backslashreplace")
