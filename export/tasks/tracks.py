"""Detections that say where they were in the frame before: CenterTrack."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from export.tasks import peaks
from export.tasks.task import COCO_IN_FULL, Heads, Task

SIDES = ("ltrb_amodal", "ltrb")
"""Heads of left, top, right and bottom from the cell, the preferred first."""


class Tracks(Task):
    """Boxes and the displacements of their centres: Zhou et al., "Tracking Objects as Points", 2020."""

    normalisation = COCO_IN_FULL
    names: ClassVar = {**Task.names, 1: ("person",)}

    @classmethod
    def channels(cls, heads: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """A head of `SIDES` takes the place of `wh` and `reg`."""
        for sides in SIDES:
            if sides in heads:
                return {sides: (4,), "tracking": (2,)}
        return {"wh": (2, 2 * heads["hm"]), "reg": (2, 0), "tracking": (2,)}

    def forward(self, heads: Heads) -> tuple[Tensor, ...]:
        """Boxes, scores, classes, centers [N, K, 2] of the peaks' cells, displacements [N, K, 2]."""
        found = peaks.find(heads["hm"], self.top_k)
        sides = next((heads[name] for name in SIDES if name in heads), None)
        if sides is not None:
            boxes = found.place.repeat(1, 2, 1) + found.read(sides)
        else:
            size = found.size(heads["wh"]).clamp(min=0)
            boxes = peaks.box_around(found.centre(heads.get("reg")), size)
        return (
            peaks.in_pixels(boxes),
            found.scores,
            found.classes,
            peaks.in_pixels(found.place),
            peaks.in_pixels(found.read(heads["tracking"])),
        )
