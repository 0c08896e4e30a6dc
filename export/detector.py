"""The network as it is served: frame in, detections out."""

import torch
from centernet_image.contract import COCO, HEADS, STRIDE, Normalisation
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from export.networks import CenterNet


class Normalise(nn.Module):
    """Makes of pixels what the network was trained on."""

    scale: Tensor
    shift: Tensor

    def __init__(self, normalisation: Normalisation = COCO) -> None:
        super().__init__()
        mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

    def forward(self, frame: Tensor) -> Tensor:
        """Maps BGR uint8 [N, H, W, 3] to float [N, 3, H, W]."""
        return frame.float().permute(0, 3, 1, 2) * self.scale + self.shift


class Decode(nn.Module):
    """The best peaks of the heat map and their boxes: Zhou et al., "Objects as Points", 2019, section 4."""

    def __init__(self, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k

    def forward(self, hm: Tensor, wh: Tensor, reg: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Decodes raw heads.

        Args:
            hm: Logits [N, C, H, W].
            wh: Width and height in cells, [N, 2, H, W], or [N, 2·C, H, W] class by class.
            reg: Offset (x, y) of the centre in its cell, [N, 2, H, W]; without it the cell's middle.

        Returns:
            Boxes [N, K, 4] (x1, y1, x2, y2 in pixels of the frame), scores [N, K], classes [N, K] int32; best
            first. Rows beyond the last peak have score 0.
        """
        classes, height, width = hm.shape[1:]
        scores = hm.sigmoid()
        scores = torch.where(scores == max_pool2d(scores, 3, stride=1, padding=1), scores, 0.0)
        # The original's K best of each class and then of all are the K best of all.
        scores, index = _top_k(scores.flatten(1, 2), self.top_k)
        cell = index % (height * width)
        centre = torch.stack([cell % width, cell // width], 1).float()
        centre = centre + (0.5 if reg is None else _at(reg.flatten(2), cell))
        if wh.shape[1] == 2:
            size = _at(wh.flatten(2), cell)
        else:
            size = _at(wh.unflatten(1, (classes, 2)).transpose(1, 2).flatten(2), index)
        corners = torch.cat([centre - size / 2, centre + size / 2], 1)
        return corners.transpose(1, 2) * STRIDE, scores, (index // (height * width)).int()


def _top_k(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K best of [N, rows, columns] and where they are in [N, rows · columns], each [N, K].

    No other row than the K whose best is best can have one of them. TensorRT sorts all that it is given:
    80 classes at once take it 4 ms on an H100. The rows stay in their order; among equals the first wins.
    """
    count, columns = rows.shape[1:]
    if count <= k:
        best, index = rows.flatten(1).topk(k)
        return best, index
    chosen = rows.amax(2).topk(k).indices
    chosen = chosen.float().topk(k, largest=False).values.long()  # TensorRT's TopK wants floats
    best, index = rows.gather(1, chosen.unsqueeze(2).expand(-1, -1, columns)).flatten(1).topk(k)
    return best, chosen.gather(1, index // columns) * columns + index % columns


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Picks [N, 2, K] of `values` [N, 2, cells] at `index` [N, K]."""
    index = index.unsqueeze(1)
    return values.gather(2, torch.cat([index, index], 1))


class Detector(nn.Module):
    """Normalisation, network and decode; the heads that it reads come last among the outputs, for checks."""

    def __init__(self, network: CenterNet, *, top_k: int, normalisation: Normalisation = COCO) -> None:
        super().__init__()
        self.normalise = Normalise(normalisation)
        self.network = network
        self.decode = Decode(top_k)

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        """Maps BGR uint8 [N, H, W, 3] to boxes, scores, classes (see `Decode`) and the heads in `HEADS`."""
        heads = self.network(self.normalise(frame))
        used = [head for name, head in heads.items() if name in HEADS]
        return (*self.decode(heads["hm"], heads["wh"], heads.get("reg")), *used)


class RawHeads(nn.Module):
    """The network alone, its outputs in the order of `network.heads`."""

    def __init__(self, network: CenterNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Maps normalised BGR [N, 3, H, W] to the raw heads [N, channels, H/4, W/4]."""
        return tuple(self.network(image).values())
