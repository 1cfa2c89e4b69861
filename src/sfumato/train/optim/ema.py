"""The moving averages of the weights, one of which is what a trained model publishes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sfumato.train.optim.power_profile import gamma_of, power_decay


def ema_decay(updates: int, decay: float) -> float:
    """The decay of update number `updates` (from 1): min(decay, (1 + n) / (10 + n)), as the LDM code warms it up."""
    return min(decay, (1 + updates) / (10 + updates))


class Ema:
    """A second copy of a module whose parameters follow the first: average ← d · average + (1 - d) · weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = _resting_copy(module)
        self.decay = decay

    def update(self, module: nn.Module, updates: int) -> None:
        """Move towards `module`; `updates` counts this one too. Buffers and whole numbers are copied."""
        _follow(self.module, module, ema_decay(updates, self.decay))


class PowerEma:
    """A copy that follows with a decay that grows with the steps, so that the average spans a fixed share of the run
    (`power_profile`); from snapshots of a few of them that of any other share is put together (`posthoc_ema`)."""

    def __init__(self, module: nn.Module, sigma_rel: float) -> None:
        self.module = _resting_copy(module)
        self.sigma_rel, self.gamma = sigma_rel, gamma_of(sigma_rel)

    def update(self, module: nn.Module, step: int) -> None:
        """Move towards `module`, the weights after `step`, as after each step before. Buffers are copied."""
        _follow(self.module, module, power_decay(step, self.gamma))


def _resting_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    averages: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(averages, list[Tensor](module.parameters()), 1.0 - decay)
    for kept, buffer in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)
