"""What every task of the family says of itself."""

from collections.abc import Mapping
from typing import ClassVar

from centernet_image.contract import COCO, COCO_CLASSES, INPUT_SIZE, TOP_K, Normalisation
from torch import Tensor, nn

COCO_IN_FULL = Normalisation((0.40789654, 0.44719302, 0.47026115), (0.28863828, 0.27408164, 0.27809835))
"""`COCO` before it was rounded, as CenterTrack and CenterFace have it."""

Heads = Mapping[str, Tensor]
"""Raw heads [N, channels, H, W], by name."""


class Task(nn.Module):
    """A decode, and what its networks are exported with unless something else is asked for.

    Attributes:
        input_size: Height and width of the frame, pixels.
        default_top_k: Detections per picture.
        normalisation: What the original trained on.
        color: Order of the channels that the network reads.
        names: Class names, by the number of classes.
    """

    input_size: ClassVar[tuple[int, int]] = INPUT_SIZE
    default_top_k: ClassVar[int] = TOP_K
    normalisation: ClassVar[Normalisation] = COCO
    color: ClassVar[str] = "bgr"
    names: ClassVar[Mapping[int, tuple[str, ...]]] = {len(COCO_CLASSES): COCO_CLASSES}

    def __init__(self, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k

    @classmethod
    def channels(cls, heads: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The heads that the decode reads, each with the numbers of channels that it may have; 0 is none.

        Args:
            heads: The network's channels, by head.
        """
        raise NotImplementedError

    @classmethod
    def labels(cls, heads: Mapping[str, int]) -> tuple[str, ...] | None:
        """Class names of a network with such channels, where they are certain."""
        return cls.names.get(heads.get("hm", 0))

    def forward(self, heads: Heads) -> tuple[Tensor, ...]:
        """Decodes raw heads.

        Returns:
            Boxes [N, K, 4] (x1, y1, x2, y2 in pixels of the frame), scores [N, K], classes [N, K] int32, and
            the task's `peaks` of the contract; best first. Rows beyond the last peak have score 0.
        """
        raise NotImplementedError
