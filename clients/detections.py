"""What the client answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects in one picture, best first.

    Attributes:
        xyxy: Boxes, float32 [n, 4]: x1 y1 x2 y2 in pixels of the original picture.
        scores: Confidence, float32 [n], 0 to 1.
        class_ids: The network's class indices, int32 [n].
        labels: The classes' names as the server knows them.
    """

    xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def to_supervision(self) -> supervision.Detections:
        """The same as `supervision.Detections`, class names under `data["class_name"]`."""
        import supervision  # takes more than a second: only who asks for it waits

        return supervision.Detections(
            xyxy=self.xyxy,
            confidence=self.scores,
            class_id=self.class_ids,
            data={"class_name": np.array(self.labels, dtype=str)},
        )
