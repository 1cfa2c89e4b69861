"""DPM-Solver with a step size found from an error estimate instead of a list."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.diffusion.integration import After, Denoise, Step, proceed
from sfumato.errors import NumericalError

_ORDER = 3
_FIRST_STEP = 0.05
_SAFETY = 0.81
_END = 1e-5
_MOST_ATTEMPTS = 10_000


@dataclass(frozen=True, slots=True)
class AdaptiveRun:
    """The result x, and what it took: model calls, and steps accepted and rejected."""

    x: Tensor
    calls: int
    accepted: int
    rejected: int


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigma_max: float,
    sigma_min: float,
    *,
    rtol: float = 0.05,
    atol: float = 0.0078,
    after: After = proceed,
) -> AdaptiveRun:
    """DPM-Solver-12(3): third-order steps, the embedded second-order ones estimating the error.

    From x (B, C, h, w) at `sigma_max` to the same at `sigma_min`.
    Lu et al. 2022 (DPM-Solver), App. C, with k-diffusion's controller (`sample_dpm_adaptive`, integral part only).
    A rejected step keeps its first model call, which k-diffusion makes again. The error is the worst picture's, where
    k-diffusion takes the mean over the batch: run pictures one by one where neighbours must not matter.
    Raises `NumericalError` if the steps shrink to nothing.
    """
    position, end = -math.log(sigma_max), -math.log(sigma_min)
    width, calls, accepted, rejected = _FIRST_STEP, 0, 0, 0
    x_before, eps = x, None
    while position < end - _END:
        if accepted + rejected >= _MOST_ATTEMPTS:
            raise NumericalError(f"dpm_adaptive made no progress in {_MOST_ATTEMPTS} steps: raise rtol or atol")
        target = min(end, position + width)
        sigma, sigma_next = math.exp(-position), sigma_min if target == end else math.exp(-target)
        if eps is None:
            x0 = denoise(x, sigma)
            eps, calls = (x - x0) / sigma, calls + 1
        low, high = _embedded_steps(denoise, x, eps, sigma, target - position)
        calls += 2
        factor = _growth(_error(low, high, x_before, rtol, atol))
        if factor >= _SAFETY:
            x = after(Step(accepted, sigma, sigma_next, high, x0))
            x_before, position, eps = low, target, None
            accepted += 1
        else:
            rejected += 1
        width *= factor
    return AdaptiveRun(x, calls, accepted, rejected)


def _embedded_steps(denoise: Denoise, x: Tensor, eps: Tensor, sigma: float, h: float) -> tuple[Tensor, Tensor]:
    """(second order, third order) over a step h in λ. Lu et al. 2022, Alg. 1 with r₁ = ⅓ and Alg. 2."""
    r1, r2 = 1.0 / 3.0, 2.0 / 3.0
    end, sigma_1, sigma_2 = (sigma * math.exp(-part * h) for part in (1.0, r1, r2))
    x_1 = x - sigma_1 * math.expm1(r1 * h) * eps
    change_1 = (x_1 - denoise(x_1, sigma_1)) / sigma_1 - eps
    bend = math.expm1(r2 * h) / (r2 * h) - 1.0
    x_2 = x - sigma_2 * math.expm1(r2 * h) * eps - sigma_2 * (r2 / r1) * bend * change_1
    change_2 = (x_2 - denoise(x_2, sigma_2)) / sigma_2 - eps
    straight = x - end * math.expm1(h) * eps
    low = straight - end / (2.0 * r1) * math.expm1(h) * change_1
    high = straight - end / r2 * (math.expm1(h) / h - 1.0) * change_2
    return low, high


def _error(low: Tensor, high: Tensor, x_before: Tensor, rtol: float, atol: float) -> float:
    """Root mean square over each picture of the difference in units of the tolerance; the largest one."""
    allowed = torch.clamp(rtol * torch.maximum(low.abs(), x_before.abs()), min=atol)
    per_picture = ((low - high) / allowed).flatten(1).square().mean(dim=1).sqrt()
    return float(per_picture.max())


def _growth(error: float) -> float:
    """Factor for the step size: 1 / error to the power 1/order, kept between about 0.2 and 2.6."""
    if not math.isfinite(error):
        raise NumericalError("dpm_adaptive met NaN or infinity in the model's answer")
    return 1.0 + math.atan((1.0 / (error + 1e-8)) ** (1.0 / _ORDER) - 1.0)
