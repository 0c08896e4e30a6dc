"""Key points of people and objects: CenterNet's `multi_pose`, CenterPose."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from export.tasks import peaks
from export.tasks.detect import Detect
from export.tasks.task import Heads

JOINT_SCORE = 0.1
"""A peak of a joint's own heat map counts if its score is greater."""

REACH = 0.3
"""How far from the regressed joint it may lie, in longer sides of the box."""


class Keypoints(Detect):
    """Joints `hps` from the centre's cell, each put on a peak of its own heat map `hm_hp` where one is near.

    Zhou et al., "Objects as Points", 2019, section 4.2.

    Attributes:
        points: The head with x and y of each.
    """

    points: ClassVar[str] = "hps"

    @classmethod
    def labels(cls, heads: Mapping[str, int]) -> tuple[str, ...] | None:
        """People's, if it has COCO's 17 joints."""
        is_coco = (heads.get("hm"), heads.get("hps")) == (1, 34)
        return ("person",) if is_coco else super().labels(heads)

    @classmethod
    def channels(cls, heads: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """`hps` has x and y of each joint; without `hm_hp` the regressed joints stay."""
        joints = max(1, heads["hps"] // 2)
        return super().channels(heads) | {"hps": (2 * joints,), "hm_hp": (joints, 0), "hp_offset": (2, 0)}

    def forward(self, heads: Heads) -> tuple[Tensor, ...]:
        """Boxes, scores, classes, and keypoints [N, K, joints, 2]: (x, y) in pixels of the frame."""
        found = peaks.find(heads["hm"], self.top_k)
        boxes = self.boxes(found, heads)
        joints = found.read(heads[self.points]).unflatten(1, (-1, 2)) + found.place.unsqueeze(1)
        if "hm_hp" in heads:
            joints = self._refine(joints, boxes, heads["hm_hp"], heads.get("hp_offset"))
        keypoints = joints.permute(0, 3, 1, 2) * peaks.STRIDE
        return peaks.in_pixels(boxes), found.scores, found.classes, keypoints

    def _refine(self, joints: Tensor, boxes: Tensor, heat: Tensor, offset: Tensor | None) -> Tensor:
        """Joints [N, J, 2, K], each moved to the nearest peak if that lies in the box, and not too far."""
        count, height, width = heat.shape[1:]
        kept = min(self.top_k, height * width)
        rows = peaks.local_maxima(heat).flatten(0, 1)
        logits, cell = (each.unflatten(0, (-1, count)) for each in peaks.best(rows, kept))  # [N, J, M]
        places = peaks.place(cell, width, dim=2)  # [N, J, 2, M]
        if offset is None:
            places = places + 0.5
        else:
            moved = peaks.gather(offset.flatten(2), cell.flatten(1))  # one offset for all joints' peaks
            places = places + moved.unflatten(2, (count, kept)).transpose(1, 2)
        squares = (joints.unsqueeze(4) - places.unsqueeze(3)).square().sum(2)  # [N, J, K, M]
        squares = torch.where((logits.sigmoid() > JOINT_SCORE).unsqueeze(2), squares, torch.inf)
        square, nearest = squares.min(3)
        nearest_places = places.gather(3, nearest.unsqueeze(2).expand(-1, -1, 2, -1))
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        reach = REACH * (high - low).amax(2)
        inside = ((nearest_places >= low) & (nearest_places <= high)).all(2)
        return torch.where((inside & (square.sqrt() <= reach)).unsqueeze(2), nearest_places, joints)
