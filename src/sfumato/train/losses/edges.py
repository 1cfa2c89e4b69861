"""L1 between the gradients of two pictures at several scales: keeps outlines sharp without a network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def edge_l1(output: Tensor, target: Tensor, scales: int) -> Tensor:
    """Mean |∂x(output - target)| plus mean |∂y(…)|, averaged over `scales` octaves (each halved by a 2×2 mean).

    Both are (B, C, H, W); returns a scalar in the unit of the pixels. Differences are between neighbours, no padding.
    """
    difference = output - target
    total = difference.new_zeros(())
    for scale in range(scales):
        if scale:
            difference = F.avg_pool2d(difference, 2)
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return total / scales
