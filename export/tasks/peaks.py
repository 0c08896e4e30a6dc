"""What the decodes share: the best peaks of a heat map, and what other heads say there.

Zhou et al., "Objects as Points", 2019, section 4. Lengths are in cells of the heat map until they leave.
"""

from dataclasses import dataclass

import torch
from centernet_image.contract import STRIDE
from torch import Tensor
from torch.nn.functional import max_pool2d

SUPPRESSED = -1e4
"""The logit of what is no peak: finite, in FP16 too, and below all whose score is not 0."""


@dataclass(frozen=True)
class Peaks:
    """The K best peaks of N pictures, best first; rows beyond the last peak have score 0.

    Attributes:
        scores: [N, K].
        classes: int32 [N, K].
        index: Where they are in all classes' cells, [N, K].
        cell: Where they are in the cells of one map, [N, K].
        place: Column and row of that cell, float [N, 2, K].
        count: Of classes.
    """

    scores: Tensor
    classes: Tensor
    index: Tensor
    cell: Tensor
    place: Tensor
    count: int

    def read(self, head: Tensor) -> Tensor:
        """The values [N, C, K] of a head [N, C, H, W]."""
        return gather(head.flatten(2), self.cell)

    def centre(self, reg: Tensor | None) -> Tensor:
        """Centres (x, y) [N, 2, K]: the cells with their offsets `reg`, or without it the cells' middles."""
        return self.place + (0.5 if reg is None else self.read(reg))

    def size(self, wh: Tensor) -> Tensor:
        """Width and height [N, 2, K] of `wh` [N, 2, H, W], or [N, 2·C, H, W] class by class."""
        if wh.shape[1] == 2:
            return self.read(wh)
        return gather(wh.unflatten(1, (self.count, 2)).transpose(1, 2).flatten(2), self.index)


def find(hm: Tensor, top_k: int) -> Peaks:
    """The best peaks of logits [N, C, H, W]."""
    classes, height, width = hm.shape[1:]
    # The original's K best of each class and then of all are the K best of all.
    logits, index = best(local_maxima(hm).flatten(1, 2), top_k)
    cell = index % (height * width)
    label = (index // (height * width)).int()
    return Peaks(logits.sigmoid(), label, index, cell, place(cell, width, dim=1), classes)


def local_maxima(logits: Tensor) -> Tensor:
    """Logits [N, C, H, W], `SUPPRESSED` where a neighbour is higher.

    The original compares scores. Logits are in the same order, and tell apart what float32 rounds to one
    score; nothing is computed on them, so a plan keeps them in the network's precision.
    """
    return torch.where(logits == max_pool2d(logits, 3, stride=1, padding=1), logits, SUPPRESSED)


def place(cell: Tensor, width: int, *, dim: int) -> Tensor:
    """Column and row of cells, float, in a new dimension."""
    return torch.stack([cell % width, cell // width], dim).float()


def best(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K best of [N, rows, columns] and where they are in [N, rows · columns], each [N, K].

    No other row than the K whose best is best can have one of them. TensorRT sorts all that it is given:
    80 classes at once take it 4 ms on an H100. The rows stay in their order; among equals the first wins.
    """
    count, columns = rows.shape[1:]
    if count <= k:
        values, index = rows.flatten(1).topk(k)
        return values, index
    chosen = rows.amax(2).topk(k).indices
    chosen = chosen.float().topk(k, largest=False).values.long()  # TensorRT's TopK wants floats
    values, index = rows.gather(1, chosen.unsqueeze(2).expand(-1, -1, columns)).flatten(1).topk(k)
    return values, chosen.gather(1, index // columns) * columns + index % columns


def gather(values: Tensor, index: Tensor) -> Tensor:
    """Picks [N, C, K] of `values` [N, C, cells] at `index` [N, K]."""
    return values.gather(2, index.unsqueeze(1).expand(-1, values.shape[1], -1))


def box_around(centre: Tensor, size: Tensor) -> Tensor:
    """Corners (x1, y1, x2, y2) [N, 4, K] of boxes, from [N, 2, K] each."""
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def in_pixels(cells: Tensor) -> Tensor:
    """Lengths or places [N, D, K] in cells as [N, K, D] in pixels of the frame."""
    return cells.transpose(1, 2) * STRIDE
