"""Detectors: CenterNet's `ctdet`."""

from collections.abc import Mapping

from torch import Tensor

from export.tasks import peaks
from export.tasks.task import Heads, Task


class Detect(Task):
    """Boxes of `wh` around the peaks, with the centres' offsets `reg`."""

    @classmethod
    def channels(cls, heads: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """`wh` is shared by all classes or class by class."""
        return {"wh": (2, 2 * heads["hm"]), "reg": (2, 0)}

    def forward(self, heads: Heads) -> tuple[Tensor, ...]:
        """Boxes, scores, classes."""
        found = peaks.find(heads["hm"], self.top_k)
        return peaks.in_pixels(self.boxes(found, heads)), found.scores, found.classes

    def boxes(self, found: peaks.Peaks, heads: Heads) -> Tensor:
        """The peaks' boxes [N, 4, K] in cells."""
        return peaks.box_around(found.centre(heads.get("reg")), found.size(heads["wh"]))
