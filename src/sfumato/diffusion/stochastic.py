"""Samplers that draw noise while they run, through a passed `noise(sigma, sigma_next)`.

As in `samplers`: `denoise`, x at `sigmas[0]`, a falling list of σ; x at `sigmas[-1]` comes back. None draws for a step
into σ = 0. h is a step in λ = −ln σ. All have k-diffusion's η = 1 but `ddim`, whose η is the caller's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from sfumato.diffusion.integration import After, Denoise, Noise, Step, proceed


def ancestral_split(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """Split a step into (down, up): go down to σ_down deterministically, then add σ_up of noise to be at σ′.

    Song et al. 2020 (DDIM), eq. 16, in σ-space; η = 1 is the DDPM posterior (Ho et al. 2020, eq. 7).
    """
    up = eta * sigma_next * math.sqrt(max(0.0, sigma**2 - sigma_next**2)) / sigma
    return math.sqrt(max(0.0, sigma_next**2 - up**2)), up


def ddim(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, after: After = proceed, *, eta: float
) -> Tensor:
    """DDIM, Song et al. 2020, eq. 12 and 16: x′ = x0 + σ_down·d + σ_up·n. Order 1, one call a step.

    x and n are (B, C, h, w). η = 0 draws nothing and is `euler`; η = 1 is `euler_ancestral`, DDPM's own variance.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        down, up = ancestral_split(sigma, sigma_next, eta)
        x = x0 + (down / sigma) * (x - x0)
        if up > 0.0:
            x = x + up * noise(sigma, sigma_next)
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, after: After = proceed
) -> Tensor:
    """Euler down, noise up (Crowson, k-diffusion `sample_euler_ancestral`). Order 1, one call a step.

    Also `ddpm`: the same update with the posterior's smaller variance (Ho et al. 2020, eq. 6 and 7).
    """
    return ddim(denoise, x, sigmas, noise, after, eta=1.0)


def dpm2_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, after: After = proceed
) -> Tensor:
    """`samplers.dpm2` down, noise up (Crowson, k-diffusion `sample_dpm_2_ancestral`). Two calls a step."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        d = (x - x0) / sigma
        down, up = ancestral_split(sigma, sigma_next)
        if down > 0.0:
            middle = math.sqrt(sigma * down)
            trial = x + (middle - sigma) * d
            x0 = denoise(trial, middle)
            d = (trial - x0) / middle
        x = x + (down - sigma) * d
        if up > 0.0:
            x = x + up * noise(sigma, sigma_next)
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def dpmpp_2s_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, after: After = proceed
) -> Tensor:
    """DPM-Solver++(2S) down, noise up, on x (B, C, h, w). Two calls a step.

    Lu et al. 2022 (DPM-Solver++), Alg. 1 with r = ½; Crowson, k-diffusion `sample_dpmpp_2s_ancestral`.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        down, up = ancestral_split(sigma, sigma_next)
        target = x0
        if down > 0.0:
            middle = math.sqrt(sigma * down)
            target = denoise(_toward(x, x0, middle / sigma), middle)
        x = _toward(x, target, down / sigma)
        if up > 0.0:
            x = x + up * noise(sigma, sigma_next)
        x = after(Step(i, sigma, sigma_next, x, target))
    return x


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, after: After = proceed) -> Tensor:
    """DPM-Solver++ (stochastic), two ancestral half steps of x (B, C, h, w) on one Brownian path. Two calls a step.

    Crowson, k-diffusion `sample_dpmpp_sde`, r = ½.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if sigma_next == 0.0:
            x = after(Step(i, sigma, sigma_next, x0, x0))
            continue
        middle = math.sqrt(sigma * sigma_next)
        down, up = ancestral_split(sigma, middle)
        trial = _toward(x, x0, down / sigma) + up * noise(sigma, middle)
        x0 = denoise(trial, middle)
        down, up = ancestral_split(sigma, sigma_next)
        x = _toward(x, x0, down / sigma) + up * noise(sigma, sigma_next)
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, after: After = proceed) -> Tensor:
    """SDE-DPM-Solver++(2M), midpoint variant, on x (B, C, h, w). Order 2 in the drift, one call a step.

    Lu et al. 2022 (DPM-Solver++), §5 and App. D; Crowson, k-diffusion `sample_dpmpp_2m_sde`; diffusers'
    `sde-dpmsolver++`, which draws independent noise for each step where this is meant for a Brownian path.
    """
    before: tuple[float, Tensor] | None = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        target = x0
        if before is not None and sigma_next > 0.0:
            target = x0 + (x0 - before[1]) * (math.log(sigma / sigma_next) / (2.0 * math.log(before[0] / sigma)))
        # over a step with η = 1 the old x is damped twice: once by the flow, once for the noise to come
        x = _toward(x, target, (sigma_next / sigma) ** 2)
        if sigma_next > 0.0:
            x = x + _fresh(sigma, sigma_next) * noise(sigma, sigma_next)
        before = (sigma, x0)
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def dpmpp_3m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, after: After = proceed) -> Tensor:
    """SDE-DPM-Solver++(3M) on x (B, C, h, w). Order 3 in the drift, one call a step.

    Crowson, k-diffusion `sample_dpmpp_3m_sde`.
    """
    known: deque[tuple[float, Tensor]] = deque(maxlen=2)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if sigma_next == 0.0:
            x = after(Step(i, sigma, sigma_next, x0, x0))
            continue
        x = _toward(x, x0, (sigma_next / sigma) ** 2) + _drift_correction(x0, sigma, sigma_next, known)
        x = x + _fresh(sigma, sigma_next) * noise(sigma, sigma_next)
        known.appendleft((sigma, x0))
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def _drift_correction(
    x0: Tensor, sigma: float, sigma_next: float, known: Sequence[tuple[float, Tensor]]
) -> Tensor | float:
    """What the first and second divided differences of x0 in λ add to a step with η = 1; `known` is newest first."""
    if not known:
        return 0.0
    h = math.log(sigma / sigma_next)
    decay = 2.0 * h
    phi_2 = math.expm1(-decay) / decay + 1.0
    (sigma_1, x0_1), *older = known
    r_0 = math.log(sigma_1 / sigma) / h
    first = (x0 - x0_1) / r_0
    if not older:
        return phi_2 * first
    sigma_2, x0_2 = older[0]
    r_1 = math.log(sigma_2 / sigma_1) / h
    second = (first - (x0_1 - x0_2) / r_1) / (r_0 + r_1)
    return phi_2 * (first + second * r_0) - (phi_2 / decay - 0.5) * second


def lcm(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, after: After = proceed) -> Tensor:
    """Multistep consistency sampling: x′ = x0 + σ′·n. `denoise` is the consistency function. One call a step.

    x and n are (B, C, h, w). Song et al. 2023, Alg. 1; Luo et al. 2023 (LCM), Alg. 3.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        x = x0 + sigma_next * noise(sigma, sigma_next) if sigma_next > 0.0 else x0
        x = after(Step(i, sigma, sigma_next, x, x0))
    return x


def _toward(x: Tensor, target: Tensor, ratio: float) -> Tensor:
    """ratio·x + (1 − ratio)·target."""
    return ratio * x + (1.0 - ratio) * target


def _fresh(sigma: float, sigma_next: float) -> float:
    """Standard deviation of the noise of a step with η = 1: σ′·√(1 − e^(−2h))."""
    return sigma_next * math.sqrt(max(0.0, 1.0 - (sigma_next / sigma) ** 2))
