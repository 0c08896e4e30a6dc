"""What the heads of CenterNet ("Objects as Points", Zhou et al. 2019) should answer for given boxes."""

from dataclasses import dataclass

import numpy as np
from centernet_image.contract import STRIDE
from centernet_image.tasks.tracks import OVERLAP, raise_to_blob

MAX_OBJECTS = 256
"""Boxes of one picture that are learnt; further ones are dropped."""


@dataclass(frozen=True)
class Targets:
    """For one picture, or with a leading batch dimension for a batch.

    Attributes:
        hm: Heat map [classes, H / 4, W / 4]: 1 at each centre's cell, a Gaussian around it.
        index: Cell of each object, row-major [MAX_OBJECTS].
        reg: Where the centre is in its cell, x y [MAX_OBJECTS, 2], 0 to 1.
        wh: Width and height in cells [MAX_OBJECTS, 2].
        valid: Which rows of the three are objects [MAX_OBJECTS].
    """

    hm: np.ndarray
    index: np.ndarray
    reg: np.ndarray
    wh: np.ndarray
    valid: np.ndarray


def make_targets(
    boxes: np.ndarray, classes: np.ndarray, *, num_classes: int, size: tuple[int, int]
) -> Targets:
    """Builds the targets of one picture.

    Args:
        boxes: [N, 4], x1 y1 x2 y2 in pixels of the frame, inside it.
        classes: [N], from 0.
        num_classes: Channels of the heat map.
        size: Height and width of the frame.
    """
    height, width = size[0] // STRIDE, size[1] // STRIDE
    boxes, classes = boxes[:MAX_OBJECTS] / STRIDE, classes[:MAX_OBJECTS]
    hm = np.zeros((num_classes, height, width), np.float32)
    index = np.zeros(MAX_OBJECTS, np.int64)
    reg, wh = np.zeros((2, MAX_OBJECTS, 2), np.float32)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = np.minimum(centres.astype(np.int64), (width - 1, height - 1))
    count = len(boxes)
    index[:count] = cells[:, 1] * width + cells[:, 0]
    reg[:count] = centres - cells
    wh[:count] = boxes[:, 2:] - boxes[:, :2]
    for kind, cell, sides in zip(classes, cells, wh, strict=False):
        raise_to_blob(hm[kind], *cell, max(0, int(gaussian_radius(*sides))))
    return Targets(hm, index, reg, wh, np.arange(MAX_OBJECTS) < count)


def gaussian_radius(width: float, height: float) -> float:
    """How far off a centre may be, in the units of the sides.

    The smallest of CornerNet's three cases as CenterNet's published code, and so every published CenterNet,
    evaluates it: `OVERLAP` is the IoU that boxes shifted by the radius should keep.
    """
    half = OVERLAP * (width + height)
    return float(np.sqrt(half**2 + 4 * OVERLAP * (1 - OVERLAP) * width * height) - half)
