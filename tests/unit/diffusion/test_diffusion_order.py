"""Measured order of convergence on a Gaussian, whose flow is known exactly, and the weights behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

from sfumato.diffusion import samplers
from sfumato.diffusion.adaptive import dpm_adaptive

MEAN, SPREAD = 0.4, 0.9
STEPS = 320
SIGMA_MAX, SIGMA_MIN = 1.5, 0.3
"""Where the flow bends most, so that a low-order start shows."""


def gaussian_denoise(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x] for x0 ~ N(MEAN, SPREAD²): Tweedie's formula."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def exact(x: Tensor) -> Tensor:
    """The probability flow from SIGMA_MAX to SIGMA_MIN."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + SIGMA_MIN**2) / (SPREAD**2 + SIGMA_MAX**2))


def log_spaced(steps: int) -> list[float]:
    return list(np.geomspace(SIGMA_MAX, SIGMA_MIN, steps + 1))


def evenly_spaced(steps: int) -> list[float]:
    return list(np.linspace(SIGMA_MAX, SIGMA_MIN, steps + 1))


def warmed_up(steps: int) -> list[float]:
    """Three very short steps first, so that the low-order start of a multistep method doesn't hide its own order."""
    lead = SIGMA_MAX - 1e-6 * np.arange(4)
    return [*lead, *np.linspace(lead[-1], SIGMA_MIN, steps + 1)[1:]]


def measured_order(
    sampler: Callable[[Callable[[Tensor, float], Tensor], Tensor, Sequence[float]], Tensor],
    spaced: Callable[[int], list[float]],
    coarse: int,
) -> float:
    x = torch.linspace(-8.0, 9.0, 7, dtype=torch.float64)
    errors = [
        float((sampler(gaussian_denoise, x, spaced(steps)) - exact(x)).abs().max()) for steps in (coarse, 2 * coarse)
    ]
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize(
    ("sampler", "spaced", "order"),
    [
        (samplers.euler, log_spaced, 1),
        (samplers.heun, log_spaced, 2),
        (samplers.dpm2, log_spaced, 2),
        (samplers.dpmpp_2m, log_spaced, 2),
        (samplers.deis, log_spaced, 2),
        (samplers.unipc, log_spaced, 2),
        # with an Euler step first, whose local error h² stays; and without that
        (samplers.k_lms, evenly_spaced, 2),
        (samplers.k_lms, warmed_up, 4),
        (samplers.ipndm, evenly_spaced, 2),
        # its averaged first step has a local error of h³
        (samplers.plms, evenly_spaced, 3),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_order_of_convergence(sampler: Callable[..., Tensor], spaced: Callable[[int], list[float]], order: int) -> None:
    assert measured_order(sampler, spaced, STEPS) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", [samplers.plms, samplers.ipndm], ids=lambda value: value.__name__)
def test_adams_bashforth_is_fourth_order_once_started(sampler: Callable[..., Tensor]) -> None:
    """A slope that is a cubic in σ is integrated exactly by all steps but the first three."""
    sigmas = evenly_spaced(12)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return x - sigma * (sigma**3 - 2.0 * sigma)

    xs: list[float] = []

    def after(step: object) -> Tensor:
        xs.append(float(step.x))
        return step.x

    sampler(denoise, torch.zeros((), dtype=torch.float64), sigmas, after)
    for i in range(3, 12):
        area = (sigmas[i + 1] ** 4 - sigmas[i] ** 4) / 4 - (sigmas[i + 1] ** 2 - sigmas[i] ** 2)
        assert xs[i] - xs[i - 1] == pytest.approx(area, rel=1e-10)


@pytest.mark.parametrize("known", [1, 2, 3, 4])
def test_lms_weights_are_the_integrals(known: int) -> None:
    """k-diffusion and diffusers integrate the same polynomials by quadrature."""
    sigmas = [14.6, 6.7, 3.5, 1.3, 0.4][: known + 1]
    nodes, end = sigmas[:known][::-1], sigmas[known]

    def basis(j: int) -> Callable[[float], float]:
        return lambda s: math.prod((s - nodes[k]) / (nodes[j] - nodes[k]) for k in range(known) if k != j)

    for j, weight in enumerate(samplers.lms_weights(nodes, end)):
        integral = scipy.integrate.quad(basis(j), nodes[0], end, epsrel=1e-12)[0]
        assert weight == pytest.approx(integral, rel=1e-12)


def test_dpm_adaptive_keeps_its_tolerance() -> None:
    x = torch.linspace(-8.0, 9.0, 7, dtype=torch.float64)[None]
    runs = [
        dpm_adaptive(gaussian_denoise, x, SIGMA_MAX, SIGMA_MIN, rtol=rtol, atol=rtol / 10)
        for rtol in (1e-1, 1e-2, 1e-3, 1e-4)
    ]
    errors = [float((run.x - exact(x)).abs().max()) for run in runs]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 5e-4
    calls = [run.calls for run in runs]
    assert calls == sorted(calls)
    assert all(run.calls == 3 * run.accepted + 2 * run.rejected for run in runs)
