"""Cameras, for 3-D boxes: their files, and where a box appears in the picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from clients.errors import CenterNetError

EXPECTED = "expected 3x4 numbers, or KITTI's calibration with a line 'P2: …'"
KITTI_LEFT_COLOUR = "P2"
"""The camera of KITTI's pictures in `image_2`."""

NEAR_M = 0.1
"""What is nearer to the camera, or behind it, has no place in the picture."""

BOX_EDGES = tuple((one, other) for one in range(8) for other in range(one) if (one ^ other) in (1, 2, 4))
"""Pairs of a box's corners, by their numbers in `centernet_image.tasks.boxes3d.corners`."""


def read(path: Path) -> np.ndarray:
    """The projection from metres (right, down, forward) to pixels of the picture, float32 [3, 4].

    Args:
        path: JSON or text: 3x4 numbers, 3x3 for a camera at the origin, or KITTI's calibration.

    Raises:
        CenterNetError: It holds none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else _numbers(text)
        if isinstance(content, dict):
            content = content[KITTI_LEFT_COLOUR]
        numbers = np.array(content, np.float64).ravel()
    except OSError as error:
        raise CenterNetError(f"{path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CenterNetError(f"{path}: no camera in it, {EXPECTED}") from error
    if numbers.size == 9:
        numbers = np.pad(numbers.reshape(3, 3), ((0, 0), (0, 1))).ravel()
    if numbers.size != 12 or not np.isfinite(numbers).all() or not numbers[0] or not numbers[5]:
        raise CenterNetError(f"{path}: found {numbers.size} numbers that are no projection, {EXPECTED}")
    return numbers.reshape(3, 4).astype(np.float32)


def _numbers(text: str) -> list[float]:
    found = re.search(rf"^{KITTI_LEFT_COLOUR}:(.*)$", text, re.MULTILINE)
    return [float(word) for word in (found[1] if found else text).replace(",", " ").split()]


def project(points: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Points [..., 3], metres, in a camera's picture: pixels [..., 2], NaN for what is behind it."""
    image = points @ camera[:, :3].T + camera[:, 3]
    return image[..., :2] / np.where(image[..., 2:] >= NEAR_M, image[..., 2:], np.nan)
