"""Detections with identities: FairMOT."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from centernet_image.contract import NORMALISATIONS
from torch import Tensor
from torch.nn.functional import normalize

from export.tasks import peaks
from export.tasks.task import Heads, Task


class Embeddings(Task):
    """Boxes by their four sides' distances from the centre, and an embedding of length 1 for each.

    Zhang et al., "FairMOT", 2021, section 4.
    """

    input_size = (608, 1088)
    default_top_k = 500
    normalisation = NORMALISATIONS["none"]
    color = "rgb"
    names: ClassVar = {**Task.names, 1: ("person",)}

    @classmethod
    def channels(cls, heads: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """`wh` is left, top, right and bottom; in FairMOT's first networks width and height."""
        return {"wh": (4, 2), "reg": (2, 0), "id": (max(1, heads["id"]),)}

    def forward(self, heads: Heads) -> tuple[Tensor, ...]:
        """Boxes, scores, classes, embeddings [N, K, channels of `id`]."""
        found = peaks.find(heads["hm"], self.top_k)
        centre, sides = found.centre(heads.get("reg")), found.read(heads["wh"])
        if sides.shape[1] == 2:
            boxes = peaks.box_around(centre, sides)
        else:
            boxes = torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], 1)
        # Gathered first: the map has a hundred times as many.
        embeddings = normalize(found.read(heads["id"]).transpose(1, 2), dim=2)
        return peaks.in_pixels(boxes), found.scores, found.classes, embeddings
