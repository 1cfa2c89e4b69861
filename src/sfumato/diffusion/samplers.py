"""Deterministic samplers: integrators of dx/dσ = d = (x − x0) / σ over a falling list of σ.

Each takes `denoise`, the state x (B, C, h, w) at `sigmas[0]`, and returns x at `sigmas[-1]`, which may be 0. They hold
no state, draw nothing, and know nothing of timesteps, models or devices. h is a step in λ = −ln σ.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import Tensor

from sfumato.diffusion.integration import After, Denoise, Step, proceed

_ADAMS_BASHFORTH: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights for equal steps, newest first, for 1 to 4 known slopes."""


def _slope(x: Tensor, x0: Tensor, sigma: float) -> Tensor:
    return (x - x0) / sigma


def _weighted(weights: Sequence[float], slopes: Iterable[Tensor]) -> Tensor:
    total, *rest = (weight * slope for weight, slope in zip(weights, slopes, strict=True))
    for term in rest:
        total = total + term
    return total


def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float], after: After = proceed) -> Tensor:
    """x′ = x + (σ′ − σ)·d on x (B, C, h, w). Order 1, one call a step. Karras et al. 2022, Alg. 1 without churn; the
    same as DDIM with η = 0 (Song et al. 2020, eq. 12)."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        x = x + (sigma_next - sigma) * _slope(x, x0, sigma)
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], after: After = proceed) -> Tensor:
    """Trapezoidal rule on x (B, C, h, w), Euler into σ = 0. Order 2, two calls a step.

    Karras et al. 2022, Alg. 1 without churn.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        d = _slope(x, x0, sigma)
        if sigma_next > 0.0:
            trial = x + (sigma_next - sigma) * d
            x0 = denoise(trial, sigma_next)
            d = (d + _slope(trial, x0, sigma_next)) / 2.0
        x = x + (sigma_next - sigma) * d
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def dpm2(denoise: Denoise, x: Tensor, sigmas: Sequence[float], after: After = proceed) -> Tensor:
    """Midpoint rule on x (B, C, h, w), the midpoint taken in log σ; Euler into σ = 0. Order 2, two calls a step.

    Crowson, k-diffusion `sample_dpm_2`, after Karras et al. 2022, Alg. 2, and Lu et al. 2022 (DPM-Solver-2).
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        d = _slope(x, x0, sigma)
        if sigma_next > 0.0:
            middle = math.sqrt(sigma * sigma_next)
            trial = x + (middle - sigma) * d
            x0 = denoise(trial, middle)
            d = _slope(trial, x0, middle)
        x = x + (sigma_next - sigma) * d
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def plms(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    after: After = proceed,
    *,
    average_single_step: bool = False,
) -> Tensor:
    """Pseudo linear multistep (Liu et al. 2022, PNDM): Adams–Bashforth with the weights for equal steps. One call a
    step, one more at the start.

    The first step averages the slope at σ₀ and at a trial point at σ₁ (CompVis' plms.py; diffusers' PNDM says the
    same by listing the second timestep twice); the history keeps only the slope at σ₀. A list of one step is a plain
    Euler step unless `average_single_step` (CompVis).

    Not followed: diffusers' inpainting also repaints the trial point, which the original doesn't.
    """
    history: deque[Tensor] = deque(maxlen=4)
    averages = len(sigmas) > 2 or average_single_step
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        history.appendleft(_slope(x, x0, sigma))
        d = _weighted(_ADAMS_BASHFORTH[len(history) - 1], history)
        if i == 0 and averages:
            trial = x + (sigma_next - sigma) * d
            d = (d + _slope(trial, denoise(trial, sigma_next), sigma_next)) / 2.0
        x = x + (sigma_next - sigma) * d
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def ipndm(denoise: Denoise, x: Tensor, sigmas: Sequence[float], after: After = proceed) -> Tensor:
    """Adams–Bashforth on x (B, C, h, w), weights for equal steps, the order rising from 1 to 4. One call a step.

    Zhang & Chen 2022, eq. 37 to 40, on the slope in σ as PNDM (Liu et al. 2022) has it.
    """
    history: deque[Tensor] = deque(maxlen=4)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        history.appendleft(_slope(x, x0, sigma))
        x = x + (sigma_next - sigma) * _weighted(_ADAMS_BASHFORTH[len(history) - 1], history)
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def k_lms(denoise: Denoise, x: Tensor, sigmas: Sequence[float], after: After = proceed, *, order: int = 4) -> Tensor:
    """Linear multistep on x (B, C, h, w), weights exact for unequal steps (`lms_weights`). Order 4, one call a step.

    Crowson, k-diffusion `sample_lms`.
    """
    history: deque[Tensor] = deque(maxlen=order)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        history.appendleft(_slope(x, x0, sigma))
        nodes = [sigmas[i - j] for j in range(len(history))]
        x = x + _weighted(lms_weights(nodes, sigma_next), history)
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def lms_weights(nodes: Sequence[float], end: float) -> tuple[float, ...]:
    """∫ from nodes[0] to `end` of each Lagrange basis polynomial over at most four `nodes`, newest first.

    Two Gauss points integrate a cubic exactly, so this is the integral, not an approximation of it.
    """
    half = (end - nodes[0]) / 2.0
    middle = nodes[0] + half
    offset = half / math.sqrt(3.0)
    places = (middle - offset, middle + offset)
    weights = []
    for j, node in enumerate(nodes):
        others = [other for k, other in enumerate(nodes) if k != j]
        scale = math.prod(node - other for other in others)
        weights.append(half * sum(math.prod(place - other for other in others) for place in places) / scale)
    return tuple(weights)


def deis(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], after: After = proceed, *, listed: int | None = None
) -> Tensor:
    """Integrate x's slope (B, C, h, w), linear in ln σ over the last two points, exactly. Order 2, one call a step.

    Zhang & Chen 2022 (DEIS), the "log ρ" variant (ρ is σ here), as diffusers' DEISMultistepScheduler has it at its
    default order: the first step is Euler's, and the last one too if the schedule lists fewer than 15 or if it goes to
    0. `listed` is the schedule's number of steps where these are the end of one, walked from a picture.
    Not followed: with Karras σ and the like diffusers repeats the last σ, a call without a step; ours go on to 0.
    """
    steps = len(sigmas) - 1
    few = (steps if listed is None else listed) < 15
    before: tuple[float, Tensor] | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        d = _slope(x, x0, sigma)
        last = i == steps - 1 and (few or sigma_next == 0.0)
        if before is None or last:
            x = x + (sigma_next - sigma) * d
        else:
            # ∫ ln(s/σ) ds over the step, then the share of it that belongs to the older slope
            moment = sigma_next * (math.log(sigma_next / sigma) - 1.0) + sigma
            share = moment / math.log(before[0] / sigma)
            x = x + (sigma_next - sigma) * d + share * (before[1] - d)
        before = (sigma, d)
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], after: After = proceed) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, Alg. 2, data prediction, on x (B, C, h, w). Order 2, one call a step.

    The first step, and any step to σ = 0, has order 1.
    """
    before: tuple[float, Tensor] | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        x = _exponential_step(x, _extrapolated(x0, sigma, sigma_next, before), sigma, sigma_next)
        before = (sigma, x0)
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def _exponential_step(x: Tensor, target: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """(σ′/σ)·x + (1 − σ′/σ)·target: exact if x0 were `target` throughout."""
    ratio = sigma_next / sigma
    return ratio * x + (1.0 - ratio) * target


def _extrapolated(x0: Tensor, sigma: float, sigma_next: float, before: tuple[float, Tensor] | None) -> Tensor:
    """x0 half a step on, linear in λ through the last two."""
    if before is None or sigma_next == 0.0:
        return x0
    return x0 + (x0 - before[1]) * (math.log(sigma / sigma_next) / (2.0 * math.log(before[0] / sigma)))


def unipc(denoise: Denoise, x: Tensor, sigmas: Sequence[float], after: After = proceed) -> Tensor:
    """UniPC with B₂(h) = eʰ − 1, data prediction, order 2: each model answer also corrects the step that led to it.

    On x (B, C, h, w). Zhao et al. 2023, Alg. 1 and 2, as diffusers' UniPCMultistepScheduler has it: one call a step, x0
    at the predicted x is not computed again at the corrected one, and the first and last step have order 1.
    """
    steps = len(sigmas) - 1
    known: deque[tuple[float, Tensor]] = deque(maxlen=2)
    start = x
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if known:
            x = _unipc_corrected(start, x0, sigma, known)
        start = x
        second_order = known and i < steps - 1
        target = _extrapolated(x0, sigma, sigma_next, known[0] if second_order else None)
        known.appendleft((sigma, x0))
        x = _exponential_step(x, target, sigma, sigma_next)
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def _unipc_corrected(start: Tensor, x0: Tensor, sigma: float, known: Sequence[tuple[float, Tensor]]) -> Tensor:
    """x at σ again, now that x0 there is known: `start` is x at the last point, `known` the (σ, x0) before, newest
    first. Zhao et al. 2023, eq. 9, with its 2×2 system solved in closed form."""
    (sigma_0, x0_0), *older = known
    h = math.log(sigma_0 / sigma)
    growth = math.expm1(-h)
    if older:
        sigma_1, x0_1 = older[0]
        r = math.log(sigma_0 / sigma_1) / h
        phi = -growth / h - 1.0
        b1, b2 = phi / growth, 2.0 * (-phi / h - 0.5) / growth
        weight_old = (b1 - b2) / (1.0 - r)
        correction = (weight_old / r) * (x0_1 - x0_0) + (b1 - weight_old) * (x0 - x0_0)
    else:
        correction = 0.5 * (x0 - x0_0)
    return (sigma / sigma_0) * start - growth * (x0_0 + correction)
