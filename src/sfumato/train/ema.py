"""The moving average of the weights, which is what a trained model publishes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def ema_decay(updates: int, decay: float) -> float:
    """The decay of update number `updates` (from 1): min(decay, (1 + n) / (10 + n)), as the LDM code warms it up."""
    return min(decay, (1 + updates) / (10 + updates))


class Ema:
    """A second copy of a module whose parameters follow the first: average ← d · average + (1 - d) · weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, updates: int) -> None:
        """Move towards `module`; `updates` counts this one too. Buffers and whole numbers are copied."""
        weight = 1.0 - ema_decay(updates, self.decay)
        averages: list[Tensor] = list(self.module.parameters())
        torch._foreach_lerp_(averages, list[Tensor](module.parameters()), weight)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)
