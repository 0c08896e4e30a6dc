"""The losses of CenterNet ("Objects as Points", Zhou et al. 2019, section 3)."""

import torch
from torch import Tensor
from torch.nn import functional as F

WH_WEIGHT = 0.1
"""Of the size against the two other losses: sizes are in cells, tens of them."""


def centernet_loss(heads: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Computes the losses of a batch.

    Args:
        heads: Raw `hm` [N, C, h, w], `reg` and `wh` [N, 2, h, w].
        targets: The fields of `training.targets.Targets` with a batch dimension.

    Returns:
        The losses of the three heads and their weighted sum, `total`: scalars.
    """
    losses = {
        "hm": focal_loss(heads["hm"].float(), targets["hm"]),
        "reg": _l1(heads["reg"], targets["reg"], targets),
        "wh": _l1(heads["wh"], targets["wh"], targets),
    }
    return {**losses, "total": losses["hm"] + losses["reg"] + WH_WEIGHT * losses["wh"]}


def focal_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Penalty-reduced focal loss with alpha 2 and beta 4, per object.

    Args:
        logits: [N, C, h, w].
        truth: The same shape, exactly 1 at centres.
    """
    centre = (truth == 1).float()
    score = logits.sigmoid()
    near = centre * (1 - score) ** 2 * F.logsigmoid(logits)
    far = (1 - centre) * (1 - truth) ** 4 * score**2 * F.logsigmoid(-logits)
    return -(near + far).sum() / centre.sum().clamp(min=1)


def _l1(head: Tensor, truth: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """L1 at the objects' cells, per object; `head` [N, 2, h, w], `truth` [N, objects, 2]."""
    index = targets["index"][:, None].expand(-1, head.shape[1], -1)
    found = head.float().flatten(2).gather(2, index).transpose(1, 2)
    valid = targets["valid"][..., None]
    return (torch.abs(found - truth) * valid).sum() / valid.sum().clamp(min=1)
