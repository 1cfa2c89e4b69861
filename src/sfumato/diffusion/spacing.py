"""The spacing rules: which points (t, σ) to visit for a number of steps. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sfumato.diffusion.beta_quantile import beta_quantile
from sfumato.diffusion.noise_schedule import NoiseSchedule
from sfumato.diffusion.profiles import Profile
from sfumato.diffusion.sampler_info import SAMPLERS, SamplerInfo
from sfumato.errors import InvalidRequest

RHO = 7.0
BETA = 0.6
ALIGN_YOUR_STEPS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""σ for Stable Diffusion v1, ten steps, from the authors' page (Sabour et al. 2024)."""

DISTILLED_STEPS = 50
"""Timesteps on which latent consistency models are distilled (Luo et al. 2023)."""


@dataclass(frozen=True, slots=True)
class Point:
    """One place on a schedule: the timestep `t` shown to the model, and the noise level `sigma`."""

    t: float
    sigma: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What the spacing rules look at; `notes` is the list they add warnings to."""

    noise: NoiseSchedule
    info: SamplerInfo
    rules: Profile
    steps: int
    notes: list[str]

    def at(self, timesteps: Iterable[int]) -> list[Point]:
        """Points at whole timesteps; those from N on are given σ of the last and are clipped later."""
        last = self.noise.num_train_timesteps - 1
        return [Point(float(t), self.noise.sigmas[min(t, last)]) for t in timesteps]

    def strides(self, count: int) -> list[float]:
        """`count` timesteps in equal strides from the last to 0; a single one is the last."""
        last = self.noise.num_train_timesteps - 1
        if count == 1:
            return [float(last)]
        return [last * (count - 1 - i) / (count - 1) for i in range(count)]

    def with_inverse_t(self, spacing: str, sigmas: Iterable[float]) -> list[Point]:
        """Points at given σ. Under diffusers' conventions some samplers show the model whole timesteps."""
        whole = _WHOLE_T.get((self.info.name, spacing)) if self.rules.integer_t else None
        times = ((self.noise.t(sigma), sigma) for sigma in sigmas)
        return [Point(float(whole(t)) if whole else t, sigma) for t, sigma in times]


def _leading(choice: Choice) -> list[Point]:
    """i·c + 1. diffusers' DPM-Solver family leaves the smallest out, having counted one step more."""
    count, steps = choice.noise.num_train_timesteps, choice.steps
    if choice.info.grid == "logsnr":
        stride = max(1, count // (steps + 1))
        return choice.at(i * stride + 1 for i in range(steps, 0, -1))
    stride = count // steps
    if choice.info.grid != "timestep" or choice.rules.leading == "exact":
        return choice.at(i * stride + 1 for i in range(steps - 1, -1, -1))
    timesteps = [t + 1 for t in range(0, count, stride)]
    if choice.rules.leading == "range" and timesteps[-1] == count:
        timesteps.pop()
        choice.notes.append(f"dropped index {count}, which the original program fails on")
    if len(timesteps) != steps:
        choice.notes.append(f"{steps} steps become {len(timesteps)}: the original lists every {stride}th timestep")
    return choice.at(reversed(timesteps))


def _trailing(choice: Choice) -> list[Point]:
    """N − i·N/S, rounded, less 1. Not followed: with this and linspace, diffusers' DDIM and PNDM step by N // S even
    where the list's next entry is elsewhere (S not dividing N); we go to the next entry."""
    count, steps = choice.noise.num_train_timesteps, choice.steps
    if choice.info.grid == "distilled":
        return choice.at(_distilled(count, steps, choice.notes))
    return choice.at(round(count - i * (count / steps)) - 1 for i in range(steps))


def _distilled(count: int, steps: int, notes: list[str]) -> list[int]:
    """`steps` of the timesteps that latent consistency models are distilled on, evenly chosen from the last down."""
    grid = DISTILLED_STEPS if steps <= DISTILLED_STEPS <= count else count
    if grid != DISTILLED_STEPS:
        notes.append(f"more than {DISTILLED_STEPS} steps: timesteps the model was not distilled on are used")
    stride = count // grid
    taught = [i * stride - 1 for i in range(grid, 0, -1)]
    return [taught[i * grid // steps] for i in range(steps)]


def _linspace(choice: Choice) -> list[Point]:
    """Whole timesteps for DDIM's and DPM-Solver's families; fractional for the k-samplers, with σ linear between."""
    if choice.info.grid == "logsnr":
        return choice.at(round(t) for t in choice.strides(choice.steps + 1)[:-1])
    if choice.steps == 1:
        choice.notes.append(
            "one step starts at the last timestep (diffusers would start at 0, where nothing is left to do)"
        )
    if choice.info.grid == "timestep":
        return choice.at(round(t) for t in choice.strides(choice.steps))
    sigmas = choice.noise.sigmas
    points = []
    for t in choice.strides(choice.steps):
        low = min(int(t), len(sigmas) - 2)
        points.append(Point(t, sigmas[low] + (t - low) * (sigmas[low + 1] - sigmas[low])))
    return points


def _k_diffusion(choice: Choice) -> list[Point]:
    return [Point(t, choice.noise.sigma(t)) for t in choice.strides(choice.steps)]


def _ramp(steps: int) -> list[float]:
    """Values from 0 to 1, `steps` of them."""
    return [i / (steps - 1) for i in range(steps)] if steps > 1 else [0.0]


def _karras(choice: Choice) -> list[Point]:
    low, high = choice.noise.sigma_min, choice.noise.sigma_max
    low_root, high_root = low ** (1.0 / RHO), high ** (1.0 / RHO)
    sigmas = [(high_root + ramp * (low_root - high_root)) ** RHO for ramp in _ramp(choice.steps)]
    return choice.with_inverse_t("karras", _exact_ends(sigmas, low, high))


def _exponential(choice: Choice) -> list[Point]:
    low, high = choice.noise.sigma_min, choice.noise.sigma_max
    sigmas = [high * (low / high) ** ramp for ramp in _ramp(choice.steps)]
    return choice.with_inverse_t("exponential", _exact_ends(sigmas, low, high))


def _beta(choice: Choice) -> list[Point]:
    low, high = choice.noise.sigma_min, choice.noise.sigma_max
    sigmas = [low + beta_quantile(1.0 - ramp, BETA) * (high - low) for ramp in _ramp(choice.steps)]
    return choice.with_inverse_t("beta", _exact_ends(sigmas, low, high))


def _exact_ends(sigmas: list[float], low: float, high: float) -> list[float]:
    """Remove the rounding error at both ends, so that they are the model's own levels to the last bit."""
    return [high] if len(sigmas) == 1 else [high, *sigmas[1:-1], low]


def _align_your_steps(choice: Choice) -> list[Point]:
    """The published list, interpolated in log σ over the step number; its last level becomes the final 0."""
    high = choice.noise.sigma_max
    if abs(high / ALIGN_YOUR_STEPS[0] - 1.0) > 0.01:
        raise InvalidRequest(
            f"spacing 'align-your-steps' was made for σ up to {ALIGN_YOUR_STEPS[0]}, this model's go to {high:.4g}: "
            "use karras"
        )
    logs = [math.log(sigma) for sigma in ALIGN_YOUR_STEPS]
    count = choice.steps if choice.rules.ays_keeps_last else choice.steps + 1
    sigmas = []
    for ramp in _ramp(count)[: choice.steps]:
        place = ramp * (len(logs) - 1)
        low = min(int(place), len(logs) - 2)
        sigmas.append(min(high, math.exp(logs[low] + (place - low) * (logs[low + 1] - logs[low]))))
    return choice.with_inverse_t("align-your-steps", sigmas)


SPACING_RULES: Mapping[str, Callable[[Choice], list[Point]]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "k-diffusion": _k_diffusion,
    "karras": _karras,
    "exponential": _exponential,
    "beta": _beta,
    "align-your-steps": _align_your_steps,
}


def _just_below(t: float) -> int:
    """Truncation as it falls out in diffusers, whose float32 σ for the last timestep, 999, comes back as 998.9999."""
    return max(0, math.ceil(t) - 1)


_LOGSNR = tuple(name for name, info in SAMPLERS.items() if info.grid == "logsnr")

_WHOLE_T: Mapping[tuple[str, str], Callable[[float], int]] = {
    (name, "karras"): round for name in (*_LOGSNR, "dpm2", "dpm2_ancestral")
} | {(name, spacing): _just_below for name in _LOGSNR for spacing in ("exponential", "beta")}
"""Where diffusers turns the timestep of a given σ into a whole number, and how."""
