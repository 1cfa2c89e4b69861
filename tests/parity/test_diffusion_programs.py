"""Samplers against the formulas of CompVis, A1111 and k-diffusion, written out in float64 in their own variables."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.diffusion.inpaint import keep_known
from sfumato.diffusion.sampling import enter, plan, run
from sfumato.diffusion.schedule import NoiseSchedule
from support.diffusion_toy import relative_error, start_noise, toy_model, toy_predict

NOISE = NoiseSchedule()
ALPHAS = np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
SIGMAS = np.sqrt((1.0 - ALPHAS) / ALPHAS)
COMPVIS_STEPS = (1, 2, 5, 7, 20, 50)
TIGHT = 1e-11


def unit(seed: int = 0) -> Tensor:
    return start_noise(seed).double()


class Draws:
    """Float64 noise in a fixed order, for both sides."""

    def __init__(self) -> None:
        self.count = 100

    def __call__(self, *_: object) -> Tensor:
        self.count += 1
        return unit(self.count)


def ours(sampler: str, steps: int, profile: str, **choices: object) -> Tensor:
    the_plan = plan(NOISE, sampler=sampler, steps=steps, profile=profile, **choices)
    return run(the_plan, toy_predict, enter(the_plan, unit()), noise=Draws())


def compvis_timesteps(steps: int) -> list[int]:
    """`make_ddim_timesteps`, without the index that the original then fails on."""
    return [t + 1 for t in range(0, 1000, 1000 // steps) if t + 1 < 1000]


def ddim_update(x: Tensor, eps: Tensor, a: float, a_prev: float, eta: float, draw: Callable[[], Tensor]) -> Tensor:
    """`p_sample_ddim` of CompVis, from ᾱ to the previous ᾱ."""
    sigma = eta * math.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
    x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
    x = math.sqrt(a_prev) * x0 + math.sqrt(1 - a_prev - sigma**2) * eps
    return x + sigma * draw() if sigma > 0 else x


def compvis_ddim(x: Tensor, timesteps: list[int], last: float, eta: float = 0.0) -> Tensor:
    draw = Draws()
    for i in reversed(range(len(timesteps))):
        a_prev = ALPHAS[timesteps[i - 1]] if i else last
        x = ddim_update(x, toy_model(x, timesteps[i]), ALPHAS[timesteps[i]], a_prev, eta, draw)
    return x


def compvis_plms(x: Tensor, timesteps: list[int], last: float, t_last: int = 1) -> Tensor:
    old: list[Tensor] = []
    for i in reversed(range(len(timesteps))):
        t, t_next = timesteps[i], timesteps[i - 1] if i else t_last
        a, a_prev = ALPHAS[t], ALPHAS[timesteps[i - 1]] if i else last
        e = toy_model(x, t)
        if not old:
            trial = ddim_update(x, e, a, a_prev, 0.0, Draws())
            blend = (e + toy_model(trial, t_next)) / 2
        elif len(old) == 1:
            blend = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            blend = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            blend = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        x = ddim_update(x, blend, a, a_prev, 0.0, Draws())
        old = [*old, e][-3:]
    return x


@pytest.mark.parametrize("steps", COMPVIS_STEPS)
def test_plms_is_the_originals(steps: int) -> None:
    theirs = compvis_plms(unit(), compvis_timesteps(steps), ALPHAS[0])
    assert relative_error(ours("plms", steps, "compvis"), theirs) < TIGHT


@pytest.mark.parametrize("steps", COMPVIS_STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_originals(eta: float, steps: int) -> None:
    theirs = compvis_ddim(unit(), compvis_timesteps(steps), ALPHAS[0], eta)
    assert relative_error(ours("ddim", steps, "compvis", eta=eta), theirs) < TIGHT


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.58, 0.75])
def test_picture_start_is_the_originals(strength: float) -> None:
    """img2img.py: `stochastic_encode` at index K, then `decode` over the first K timesteps."""
    timesteps, kept, picture = compvis_timesteps(50), int(strength * 50), 0.7 * unit(5)
    a = ALPHAS[timesteps[kept]]
    x = math.sqrt(a) * picture + math.sqrt(1 - a) * unit()
    the_plan = plan(NOISE, sampler="ddim", steps=50, profile="compvis", strength=strength)
    result = run(the_plan, toy_predict, enter(the_plan, unit(), picture))
    assert relative_error(result, compvis_ddim(x, timesteps[:kept], ALPHAS[0])) < TIGHT


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_inpainting_is_the_originals(eta: float) -> None:
    """ddim.py: `q_sample` of the picture with fresh noise, blended in before each call."""
    timesteps, picture = compvis_timesteps(10), 0.7 * unit(5)
    keep = (unit(7) > 0).double()
    x, draw = unit(), Draws()
    for i in reversed(range(len(timesteps))):
        a, a_prev = ALPHAS[timesteps[i]], ALPHAS[timesteps[i - 1]] if i else ALPHAS[0]
        known = math.sqrt(a) * picture + math.sqrt(1 - a) * draw()
        x = known * keep + (1 - keep) * x
        x = ddim_update(x, toy_model(x, timesteps[i]), a, a_prev, eta, draw)
    the_plan = plan(NOISE, sampler="ddim", steps=10, profile="compvis", eta=eta)
    shared = Draws()
    kept = keep_known("compvis", latents=picture, mask=1 - keep, noise=unit(), draw=shared)
    result = run(the_plan, toy_predict, enter(the_plan, unit()), noise=shared, inpaint=kept)
    assert relative_error(result, x) < TIGHT


def a1111_timesteps(steps: int) -> list[int]:
    return [min(t + 1, 999) for t in range(0, 1000, 1000 // steps)]


@pytest.mark.parametrize("steps", [2, 3, 5, 7, 20])
def test_a1111_lists_are_walked_to_their_first_entry(steps: int) -> None:
    first, *walked = a1111_timesteps(steps)
    assert relative_error(ours("ddim", steps, "a1111"), compvis_ddim(unit(), walked, ALPHAS[first])) < TIGHT
    assert relative_error(ours("plms", steps, "a1111"), compvis_plms(unit(), walked, ALPHAS[first], first)) < TIGHT


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
def test_a1111_picture_starts(strength: float) -> None:
    steps, picture = 20, 0.7 * unit(5)
    kept = int(min(strength, 0.999) * steps)
    timesteps = a1111_timesteps(steps)
    a = ALPHAS[timesteps[kept]]
    x = math.sqrt(a) * picture + math.sqrt(1 - a) * unit()
    first, *walked = timesteps[:kept]
    the_plan = plan(NOISE, sampler="ddim", steps=steps, profile="a1111", strength=strength)
    result = run(the_plan, toy_predict, enter(the_plan, unit(), picture))
    assert relative_error(result, compvis_ddim(x, walked, ALPHAS[first])) < TIGHT

    sigmas = k_sigmas(steps)[steps - kept - 1 :]
    the_plan = plan(NOISE, sampler="euler", steps=steps, profile="a1111", strength=strength)
    result = run(the_plan, toy_predict, enter(the_plan, unit(), picture))
    x = picture + sigmas[0] * unit()
    for s, s_next in pairwise(sigmas):
        x = x + (x - k_model(x, s)) / s * (s_next - s)
    assert relative_error(result, x) < TIGHT


# k-diffusion, in its own variables: σ, t = −ln σ


def k_sigmas(steps: int) -> list[float]:
    """`DiscreteSchedule.get_sigmas`: t from 999 to 0, ln σ linear between whole timesteps, then 0."""
    t = np.linspace(999, 0, steps)
    return [*np.exp(np.interp(t, np.arange(1000), np.log(SIGMAS))), 0.0]


def karras_sigmas(steps: int) -> list[float]:
    ramp = np.linspace(0, 1, steps)
    high, low = SIGMAS[-1] ** (1 / 7), SIGMAS[0] ** (1 / 7)
    return [*((high + ramp * (low - high)) ** 7), 0.0]


def k_model(x: Tensor, sigma: float) -> Tensor:
    """`CompVisDenoiser` with continuous timesteps."""
    t = float(np.interp(np.log(sigma), np.log(SIGMAS), np.arange(1000)))
    return x - sigma * toy_model(x / math.sqrt(sigma**2 + 1), t)


def split(s: float, s_next: float) -> tuple[float, float]:
    up = min(s_next, (s_next**2 * (s**2 - s_next**2) / s**2) ** 0.5)
    return (s_next**2 - up**2) ** 0.5, up


def k_dpmpp_2s_ancestral(x: Tensor, sigmas: list[float], draw: Draws) -> Tensor:
    for s, s_next in pairwise(sigmas):
        denoised = k_model(x, s)
        down, up = split(s, s_next)
        if down == 0:
            x = x + (x - denoised) / s * (down - s)
            continue
        t, t_next = -math.log(s), -math.log(down)
        h = t_next - t
        middle = t + 0.5 * h
        x_2 = math.exp(-middle) / math.exp(-t) * x - math.expm1(-h * 0.5) * denoised
        x = math.exp(-t_next) / math.exp(-t) * x - math.expm1(-h) * k_model(x_2, math.exp(-middle))
        x = x + draw() * up
    return x


def k_dpmpp_3m_sde(x: Tensor, sigmas: list[float], draw: Draws) -> Tensor:
    denoised_1 = denoised_2 = torch.zeros(())
    h_1: float | None = None
    h_2: float | None = None
    for s, s_next in pairwise(sigmas):
        denoised = k_model(x, s)
        if s_next == 0:
            x = denoised
            continue
        h = math.log(s) - math.log(s_next)
        h_eta = 2 * h
        x = math.exp(-h_eta) * x - math.expm1(-h_eta) * denoised
        phi_2 = math.expm1(-h_eta) / h_eta + 1
        if h_1 is not None and h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - denoised_1) / r0, (denoised_1 - denoised_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        elif h_1 is not None:
            x = x + phi_2 * (denoised - denoised_1) / (h_1 / h)
        x = x + draw() * s_next * math.sqrt(-math.expm1(-2 * h))
        denoised_1, denoised_2 = denoised, denoised_1
        h_1, h_2 = h, h_1
    return x


def k_dpmpp_sde(x: Tensor, sigmas: list[float], draw: Draws) -> Tensor:
    for s, s_next in pairwise(sigmas):
        denoised = k_model(x, s)
        if s_next == 0:
            x = x + (x - denoised) / s * (s_next - s)
            continue
        t, t_next = -math.log(s), -math.log(s_next)
        middle = t + 0.5 * (t_next - t)
        down, up = split(s, math.exp(-middle))
        x_2 = down / s * x - math.expm1(t + math.log(down)) * denoised + up * draw()
        denoised_2 = k_model(x_2, math.exp(-middle))
        down, up = split(s, s_next)
        x = down / s * x - math.expm1(t + math.log(down)) * denoised_2 + up * draw()
    return x


def k_dpmpp_2m_sde(x: Tensor, sigmas: list[float], draw: Draws) -> Tensor:
    old: Tensor | None = None
    h_last = 0.0
    for s, s_next in pairwise(sigmas):
        denoised = k_model(x, s)
        if s_next == 0:
            x = denoised
            continue
        h = math.log(s) - math.log(s_next)
        x = s_next / s * math.exp(-h) * x - math.expm1(-2 * h) * denoised
        if old is not None:
            x = x - 0.5 * math.expm1(-2 * h) / (h_last / h) * (denoised - old)
        x = x + draw() * s_next * math.sqrt(-math.expm1(-2 * h))
        old, h_last = denoised, h
    return x


K_STOCHASTIC = {
    "dpmpp_2s_ancestral": k_dpmpp_2s_ancestral,
    "dpmpp_sde": k_dpmpp_sde,
    "dpmpp_2m_sde": k_dpmpp_2m_sde,
    "dpmpp_3m_sde": k_dpmpp_3m_sde,
}


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("sampler", K_STOCHASTIC)
@pytest.mark.parametrize(("spacing", "levels"), [("k-diffusion", k_sigmas), ("karras", karras_sigmas)])
def test_stochastic_samplers_are_k_diffusions(
    sampler: str, spacing: str, levels: Callable[[int], list[float]], steps: int
) -> None:
    sigmas = levels(steps)
    theirs = K_STOCHASTIC[sampler](sigmas[0] * unit(), sigmas, Draws())
    assert relative_error(ours(sampler, steps, "k-diffusion", spacing=spacing), theirs) < 1e-9


def test_a1111_leaves_out_the_last_sigma_but_zero_where_it_says_so() -> None:
    sigmas = karras_sigmas(8)
    sigmas = [*sigmas[:-2], 0.0]
    x = sigmas[0] * unit()
    for s, s_next in pairwise(sigmas):
        d = (x - k_model(x, s)) / s
        if s_next == 0:
            x = x + d * (s_next - s)
            continue
        middle = math.exp((math.log(s) + math.log(s_next)) / 2)
        x_2 = x + d * (middle - s)
        x = x + (x_2 - k_model(x_2, middle)) / middle * (s_next - s)
    assert relative_error(ours("dpm2", 7, "a1111"), x) < 1e-9


@pytest.mark.parametrize(("rtol", "atol"), [(0.05, 0.0078), (0.005, 0.001)])
def test_dpm_adaptive_is_k_diffusions(rtol: float, atol: float) -> None:
    """`DPMSolver.dpm_solver_adaptive`, order 3, η = 0, with its PID controller left at I = 1, for one picture."""
    x = x_prev = SIGMAS[-1] * unit()[:1]
    s, end, h, errors, calls = -math.log(SIGMAS[-1]), -math.log(SIGMAS[0]), 0.05, [], 0

    def eps(x: Tensor, at: float) -> Tensor:
        nonlocal calls
        calls += 1
        return (x - k_model(x, math.exp(-at))) / math.exp(-at)

    accepted = rejected = 0
    while s < end - 1e-5:
        t = min(end, s + h)
        step = t - s
        e = eps(x, s)
        r1, r2 = 1 / 3, 2 / 3
        s1, s2 = s + r1 * step, s + r2 * step
        e1 = eps(x - math.exp(-s1) * math.expm1(r1 * step) * e, s1)
        low = x - math.exp(-t) * math.expm1(step) * e - math.exp(-t) / (2 * r1) * math.expm1(step) * (e1 - e)
        inner = math.expm1(r2 * step) / (r2 * step) - 1
        u2 = x - math.exp(-s2) * math.expm1(r2 * step) * e - math.exp(-s2) * (r2 / r1) * inner * (e1 - e)
        e2 = eps(u2, s2)
        bend = math.expm1(step) / step - 1
        high = x - math.exp(-t) * math.expm1(step) * e - math.exp(-t) / r2 * bend * (e2 - e)
        delta = torch.maximum(torch.tensor(atol), rtol * torch.maximum(low.abs(), x_prev.abs()))
        error = float(torch.linalg.norm((low - high) / delta)) / x.numel() ** 0.5
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / 3) - 1)
        if factor >= 0.81:
            x_prev, x, s, accepted = low, high, t, accepted + 1
        else:
            rejected += 1
        h *= factor
        errors.append(error)
    the_plan = plan(NOISE, sampler="dpm_adaptive", steps=1, profile="k-diffusion", rtol=rtol, atol=atol)
    seen: list[int] = []
    ours_calls = 0

    def counted(x_in: Tensor, t: float, sigma: float) -> Tensor:
        nonlocal ours_calls
        ours_calls += 1
        return toy_predict(x_in, t, sigma)

    result = run(the_plan, counted, enter(the_plan, unit()[:1]), on_step=lambda step: seen.append(step.index))
    assert relative_error(result, x) < 1e-9
    assert seen == list(range(accepted))
    # a rejected step keeps its first call
    assert ours_calls == calls - rejected
