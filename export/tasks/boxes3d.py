"""Boxes in space from one camera: CenterNet's `ddd`."""

from collections.abc import Mapping
from math import pi
from typing import ClassVar

import torch
from centernet_image.contract import NORMALISATIONS
from torch import Tensor

from export.tasks import peaks
from export.tasks.task import Heads, Task


class Boxes3D(Task):
    """Depth, angle and dimensions at the peaks; with `wh` the box in the picture, too.

    Zhou et al., "Objects as Points", 2019, section 4.1; the two bins of the angle are Mousavian et al.'s, "3D
    Bounding Box Estimation Using Deep Learning and Geometry", 2017.
    """

    input_size = (384, 1280)
    normalisation = NORMALISATIONS["imagenet"]
    # KITTI's, as the original numbers them.
    names: ClassVar = {**Task.names, 3: ("pedestrian", "car", "cyclist")}

    @classmethod
    def channels(cls, heads: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """`rot` has two bins of (unused, score, sin, cos).

        `amodel_offset`, as CenterTrack spells it, leads from a box's centre to that of the object, part of
        which the picture's border may hide.
        """
        return {
            "wh": (2, 2 * heads["hm"], 0),
            "reg": (2, 0),
            "dep": (1,),
            "rot": (8,),
            "dim": (3,),
            "amodel_offset": (2, 0),
        }

    def forward(self, heads: Heads) -> tuple[Tensor, ...]:
        """Boxes, scores, classes, centers [N, K, 2], depths [N, K], alphas [N, K], dimensions [N, K, 3].

        Without `wh` a box is its centre.
        """
        found = peaks.find(heads["hm"], self.top_k)
        centre = found.centre(heads.get("reg"))
        boxes = peaks.box_around(centre, found.size(heads["wh"])) if "wh" in heads else centre.repeat(1, 2, 1)
        whole = centre + found.read(heads["amodel_offset"]) if "amodel_offset" in heads else centre
        depth = 1 / (found.read(heads["dep"]).sigmoid() + 1e-6) - 1
        _, first, sin_1, cos_1, _, second, sin_2, cos_2 = found.read(heads["rot"]).unbind(1)
        alpha = torch.where(
            first > second, torch.atan2(sin_1, cos_1) - pi / 2, torch.atan2(sin_2, cos_2) + pi / 2
        )
        return (
            peaks.in_pixels(boxes),
            found.scores,
            found.classes,
            peaks.in_pixels(whole),
            depth.squeeze(1),
            alpha,
            found.read(heads["dim"]).transpose(1, 2),
        )
