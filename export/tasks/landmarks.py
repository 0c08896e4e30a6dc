"""Faces with landmarks: CenterFace as chenjun2hao's CenterFace.pytorch trains it."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from export.tasks import peaks
from export.tasks.keypoints import Keypoints
from export.tasks.task import COCO_IN_FULL, Heads, Task

UNIT = 4
"""Cells: sizes are logarithms of such units."""


class Landmarks(Keypoints):
    """Boxes of logarithmic sizes, and landmarks from the centre's cell.

    Xu et al., "CenterFace", 2019, section 3. The original trains landmarks as distances from the cell, but
    decodes them from the centre with its offset: up to a cell too far right and down. Here they are right.
    """

    input_size = (800, 800)
    default_top_k = 200
    normalisation = COCO_IN_FULL
    names: ClassVar = {**Task.names, 1: ("face",)}
    points = "landmarks"

    @classmethod
    def channels(cls, heads: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """`landmarks` has x and y of each."""
        landmarks = max(1, heads["landmarks"] // 2)
        return {"wh": (2,), "hm_offset": (2,), "landmarks": (2 * landmarks,)}

    def boxes(self, found: peaks.Peaks, heads: Heads) -> Tensor:
        """The peaks' boxes [N, 4, K] in cells."""
        return peaks.box_around(found.centre(heads["hm_offset"]), UNIT * found.size(heads["wh"]).exp())
