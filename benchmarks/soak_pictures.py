"""Pictures for a soak, and the answers of a quiet server to them."""

import struct
from dataclasses import dataclass

import cv2
import numpy as np
from centernet_image import contract
from tritonclient.grpc import service_pb2

MODEL = "centernet"

SIZES = {(64, 48): 4, (320, 240): 6, (640, 480): 6, (1280, 960): 4, (1920, 1080): 2, (4000, 3000): 1}
"""Width and height, pixels: how many pictures of each."""

BOX_PX, SCORE = 1.0, 0.01
"""Batches of other sizes are computed by other kernels; the answer to another picture differs by far more."""


@dataclass(frozen=True)
class Picture:
    """A request, and the quiet server's answer: rows of x1 y1 x2 y2, score, class. None: it is damaged."""

    request: service_pb2.ModelInferRequest
    expected: np.ndarray | None = None


def draw(sizes: dict[tuple[int, int], int]) -> list[bytes]:
    """Encoded pictures of a few discs each, somewhere on an uneven ground."""
    random = np.random.default_rng(0)
    pictures: list[bytes] = []
    for size in (size for size, count in sizes.items() for _ in range(count)):
        image = cv2.resize(random.integers(0, 90, (6, 8, 3), np.uint8), (640, 480))
        for x, y, radius, grey in random.integers((40, 40, 15, 120), (600, 440, 40, 256), (12, 4)).tolist():
            cv2.circle(image, (x, y), radius, (grey, grey, grey), cv2.FILLED, cv2.LINE_AA)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        noise = random.integers(0, 12, image.shape, np.uint8)
        image = cv2.add(image, noise)
        end = (".jpg", ".png", ".webp")[len(pictures) % 3] if size[0] < 1000 else ".jpg"
        pictures.append(cv2.imencode(end, image)[1].tobytes())
    return pictures


def make_request(picture: bytes, threshold: float) -> service_pb2.ModelInferRequest:
    """A request for the detections in one encoded picture."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name=contract.IMAGE.name, datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(picture)) + picture)
    request.parameters["score_threshold"].string_param = repr(threshold)
    return request


def detections(response: service_pb2.ModelInferResponse) -> np.ndarray:
    """Rows of x1 y1 x2 y2, score, class."""
    found = dict(zip((o.name for o in response.outputs), response.raw_output_contents, strict=True))
    count, boxes, scores, classes = (
        np.frombuffer(found[tensor.name], np.int32 if tensor.dtype == "INT32" else np.float32)
        for tensor in contract.DETECTIONS
        if tensor.dtype != "STRING"
    )
    return np.column_stack([boxes.reshape(-1, 4), scores, classes])[: count[0]]


def threshold_between(scores: np.ndarray) -> float:
    """The middle of the widest gap among the best 50: no rounding puts a detection on its other side."""
    best = np.sort(scores)[::-1][:51]
    index = int(np.argmax(best[:-1] - best[1:]))
    return float(best[index : index + 2].mean())


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether each has the other's rows; in any order, which near-equal scores may change."""
    if len(found) != len(expected):
        return False
    near = (np.abs(found[:, None] - expected) <= [BOX_PX] * 4 + [SCORE, 0]).all(-1)
    return bool(near.any(0).all() and near.any(1).all())
