"""The network as it is served: frame in, detections out."""

import torch
from centernet_image.contract import COCO, Normalisation
from torch import Tensor, nn

from export.networks import CenterNet
from export.tasks import DETECT, TASKS


class Normalise(nn.Module):
    """Makes of pixels what the network was trained on."""

    scale: Tensor
    shift: Tensor
    order: Tensor | None

    def __init__(self, normalisation: Normalisation = COCO, color: str = "bgr") -> None:
        super().__init__()
        mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))
        self.register_buffer("order", torch.tensor([2, 1, 0]) if color == "rgb" else None)

    def forward(self, frame: Tensor) -> Tensor:
        """Maps BGR uint8 [N, H, W, 3] to float [N, 3, H, W], in the network's order of channels."""
        pixels = frame.float().permute(0, 3, 1, 2)
        if self.order is not None:
            pixels = pixels.index_select(1, self.order)
        return pixels * self.scale + self.shift


class Detector(nn.Module):
    """Normalisation, network and decode; the heads that it reads come last among the outputs, for checks."""

    def __init__(
        self,
        network: CenterNet,
        *,
        top_k: int,
        normalisation: Normalisation = COCO,
        color: str = "bgr",
        task: str = DETECT,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(normalisation, color)
        self.network = network
        self.decode = TASKS[task](top_k)

    def forward(
        self, frame: Tensor, previous_frame: Tensor | None = None, previous_heat: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Maps BGR uint8 [N, H, W, 3] to the task's outputs, all of them as `PEAKS`, and the heads it reads.

        Args:
            frame: The frame.
            previous_frame: The one before, as `frame`.
            previous_heat: Where its objects were, 0 to 1, [N, H, W]; not read by a network without `pre_hm`.
        """
        previous = {}
        if previous_frame is not None:
            previous["pre_img"] = self.normalise(previous_frame)
        if previous_heat is not None:
            previous["pre_hm"] = previous_heat.unsqueeze(1)
        read = [previous[stem] for stem in self.network.stems] if previous else []
        heads = self.network(self.normalise(frame), *read)
        used = {name: head for name, head in heads.items() if name in self.reads()}
        outputs = self.decode(used)
        columns = [each.flatten(2) if each.dim() > 2 else each.unsqueeze(2) for each in outputs]
        return (*outputs, torch.cat([each.float() for each in columns], 2), *used.values())

    def reads(self) -> list[str]:
        """The heads that the decode reads, in the network's order."""
        channels = self.network.channels
        read = {"hm", *self.decode.channels(channels)}
        return [name for name in channels if name in read]


class RawHeads(nn.Module):
    """The network alone, its outputs in the order of `network.channels`."""

    def __init__(self, network: CenterNet) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image: Tensor, first: Tensor | None = None, second: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Maps a normalised picture [N, 3, H, W] to the raw heads [N, channels, H/4, W/4].

        Args:
            image: The picture.
            first: What the network's first stem reads: the picture before, as `image`, or where its objects
                were, 0 to 1, [N, H, W].
            second: What its second stem reads.
        """
        given = [tensor for tensor in (first, second) if tensor is not None]
        previous = [tensor if tensor.dim() == 4 else tensor.unsqueeze(1) for tensor in given]
        return tuple(self.network(image, *previous).values())
