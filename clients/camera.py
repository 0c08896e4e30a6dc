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
"""Pairs of `corners`: bit 0 of a corner's number is the length, bit 1 the height, bit 2 the width."""


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


def corners(location: np.ndarray, dimensions: np.ndarray, rotation: float) -> np.ndarray:
    """The corners of a 3-D box as KITTI defines it (Geiger et al., 2012), metres [8, 3].

    Args:
        location: Middle of the bottom, [3].
        dimensions: Height, width, length, [3].
        rotation: Around the vertical axis, radians; 0 points to the right.
    """
    height, width, length = dimensions
    bits = np.arange(8)[:, None] >> np.arange(3) & 1
    along, up, across = ((bits - (0.5, 0, 0.5)) * (length, height, width)).T
    cos, sin = np.cos(rotation), np.sin(rotation)
    return location + np.stack([along * cos + across * sin, -up, across * cos - along * sin], 1)


def project(points: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Points [n, 3], metres, in the picture of a camera [3, 4]: pixels [n, 2], NaN for what is behind it."""
    image = np.concatenate([points, np.ones((len(points), 1))], 1) @ camera.T
    depths = np.where(image[:, 2:] >= NEAR_M, image[:, 2:], np.nan)
    return image[:, :2] / depths
