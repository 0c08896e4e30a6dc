"""What the client answers with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from centernet_image import contract

if TYPE_CHECKING:
    import supervision

EXTRAS = {
    tensor.name.removeprefix("detection_"): tensor
    for task in contract.TASKS.values()
    for tensor in task.answers
}
"""What only some networks answer: the name here, and the server's tensor."""


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects in one picture, best first. What the network does not answer is None.

    Attributes:
        xyxy: Boxes, float32 [n, 4]: x1 y1 x2 y2 in pixels of the original picture.
        scores: Confidence, float32 [n], 0 to 1.
        class_ids: The network's class indices, int32 [n].
        labels: The classes' names as the server knows them.
        keypoints: Float32 [n, J, 2]: x y in pixels of the original picture.
        locations: Middle of the bottom of 3-D boxes, float32 [n, 3]: metres to the right of the camera, below
            and before it.
        dimensions: Of 3-D boxes, float32 [n, 3]: height, width, length, metres.
        rotations: Of 3-D boxes around the vertical axis, float32 [n], radians.
        embeddings: Unit vectors that are alike for the same object, float32 [n, D].
        tracks: Identities over a video, int32 [n]; -1 where there is none (yet).
    """

    xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    labels: tuple[str, ...]
    keypoints: np.ndarray | None = None
    locations: np.ndarray | None = None
    dimensions: np.ndarray | None = None
    rotations: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    tracks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def extras(self) -> dict[str, np.ndarray]:
        """Those of `EXTRAS` that the network has answered."""
        return {name: value for name in EXTRAS if (value := getattr(self, name)) is not None}

    def __getitem__(self, index: slice | np.ndarray) -> Detections:
        """Some of them: a slice, a mask or indices."""
        return replace(
            self,
            xyxy=self.xyxy[index],
            scores=self.scores[index],
            class_ids=self.class_ids[index],
            labels=tuple(np.array(self.labels, object)[index]),
            **{name: value[index] for name, value in self.extras.items()},
        )

    def to_supervision(self) -> supervision.Detections:
        """The same as `supervision.Detections`.

        Class names are under `data["class_name"]`, `tracks` are its `tracker_id`, and the other extras are in
        `data` under their names here.
        """
        import supervision  # takes more than a second: only who asks for it waits

        data = {name: value for name, value in self.extras.items() if name != "tracks"}
        return supervision.Detections(
            xyxy=self.xyxy,
            confidence=self.scores,
            class_id=self.class_ids,
            tracker_id=self.tracks,
            data={"class_name": np.array(self.labels, dtype=str), **data},
        )
