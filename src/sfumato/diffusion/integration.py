"""The types every sampler shares: what it calls, what it draws, and what it tells after each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""`denoise(x, sigma) -> x0`: the model's estimate of the clean latents, x = x0 + σ·noise. All (B, C, h, w) float32."""

Noise = Callable[[float, float], Tensor]
"""`noise(sigma, sigma_next) -> n`: unit normal noise for the step from σ down to σ′, shaped as x."""


@dataclass(frozen=True, slots=True)
class Step:
    """Step `index` (from 0) went from `sigma` to `sigma_next`; `x` is where it arrived, `x0` the latest estimate."""

    index: int
    sigma: float
    sigma_next: float
    x: Tensor
    x0: Tensor


After = Callable[[Step], Tensor]
"""Called at the end of each step with what happened; returns the x to go on with. May raise to stop the run."""


def proceed(step: Step) -> Tensor:
    """An `After` that changes nothing: gives the step's x (B, C, h, w)."""
    return step.x
