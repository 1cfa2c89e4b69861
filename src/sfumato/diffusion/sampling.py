"""The one entry to sampling: `plan` decides the points, `enter` makes the first state, `run` walks to the latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sfumato.diffusion import samplers, stochastic
from sfumato.diffusion.adaptive import dpm_adaptive
from sfumato.diffusion.brownian import brownian_noise, torchsde_noise
from sfumato.diffusion.denoiser import Predict, consistency, denoiser
from sfumato.diffusion.image_to_image import image_start
from sfumato.diffusion.inpaint import Inpaint
from sfumato.diffusion.integration import After, Denoise, Noise, Step
from sfumato.diffusion.noise import Draw, white_noise
from sfumato.diffusion.profiles import PROFILES, follows_path, model_calls
from sfumato.diffusion.sampler_info import SAMPLERS
from sfumato.diffusion.schedule import NoiseSchedule, Schedule, make_schedule
from sfumato.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do: the schedule, and where on it the run starts.

    `start` is the index of the first point walked (0 unless it starts from a picture; the number of points when
    strength 0 leaves nothing to do). `entry_sigma` is the noise a picture is given, normally the first point's σ.
    """

    schedule: Schedule
    eta: float = 0.0
    rtol: float = 0.05
    atol: float = 0.0078
    start: int = 0
    entry_sigma: float

    @property
    def sampler(self) -> str:
        return self.schedule.sampler

    @property
    def sigmas(self) -> tuple[float, ...]:
        """σ of the points walked and the final one; empty when nothing is to be done."""
        return self.schedule.sigmas[self.start :] if self.steps else ()

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Timesteps of the points walked."""
        return self.schedule.timesteps[self.start :]

    @property
    def steps(self) -> int:
        """Steps walked: the samplers' `on_step` is called as often (dpm_adaptive: as often as it accepts a step)."""
        return len(self.schedule.points) - self.start

    @property
    def model_calls(self) -> int | None:
        """Model calls the run makes; None where only running it tells."""
        return model_calls(self.sampler, self.steps, self.schedule.profile)

    @property
    def draws_noise(self) -> bool:
        """Whether `run` needs `noise`."""
        info = SAMPLERS[self.sampler]
        return info.stochastic or (info.takes_eta and self.eta > 0.0)

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings, one line each."""
        return self.schedule.notes


def plan(
    noise_schedule: NoiseSchedule,
    *,
    sampler: str,
    steps: int,
    spacing: str | None = None,
    profile: str = "diffusers",
    strength: float | None = None,
    eta: float = 0.0,
    rtol: float = 0.05,
    atol: float = 0.0078,
) -> Plan:
    """Decide a run. `strength` None starts from noise; a number from 0 to 1 starts from a picture, from that share of
    the steps (at least one unless it is 0). Raises `InvalidRequest` for a choice that makes no sense.
    """
    schedule = make_schedule(noise_schedule, sampler=sampler, steps=steps, spacing=spacing, profile=profile)
    if eta != 0.0 and not SAMPLERS[sampler].takes_eta:
        raise InvalidRequest(f"eta {eta:g} has no meaning for sampler {sampler!r}: only ddim takes it; leave it at 0")
    if not 0.0 <= eta <= 1.0:
        raise InvalidRequest(f"eta {eta:g} must be from 0 to 1")
    start, entry_sigma = 0, schedule.sigmas[0]
    if strength is not None:
        start, entry_sigma = image_start(schedule, steps, strength)
    return Plan(schedule=schedule, eta=eta, rtol=rtol, atol=atol, start=start, entry_sigma=entry_sigma)


def enter(plan: Plan, noise: Tensor, latents: Tensor | None = None) -> Tensor:
    """The state to start from, (B, C, h, w) float32: scaled unit `noise`, or `latents` of a picture noised with it.

    A plan with `strength` takes `latents`; inpainting at strength 1 starts from noise alone in diffusers: leave
    `latents` out there. Raises `InvalidRequest` where the plan needs `latents` and gets none.
    """
    if latents is None:
        if plan.start:
            raise InvalidRequest("a plan with a strength below 1 starts from a picture's latents: pass them")
        return plan.schedule.initial_scale * noise
    if not plan.steps:
        return latents
    start = plan.sigmas[0]
    x = latents + plan.entry_sigma * noise
    if plan.entry_sigma == start:
        return x
    # the latents noised to one level are handed on as though they were at another: only √ᾱ differs
    return x * math.sqrt((1.0 + start**2) / (1.0 + plan.entry_sigma**2))


def step_noise(plan: Plan, draw: Draw, seeds: Sequence[int], like: Tensor) -> Noise:
    """The noise a plan's sampler wants while it runs: independent draws that go on in each picture's stream, or for
    the SDE samplers a Brownian path per picture from its seed. `like` gives shape and device.

    Raises `MissingExtra` where the profile's paths are torchsde's and it isn't installed.
    """
    if follows_path(plan.sampler, plan.schedule.profile):
        return _PATHS[PROFILES[plan.schedule.profile].brownian](plan, seeds, like)
    return white_noise(draw, like)


def _own_path(plan: Plan, seeds: Sequence[int], like: Tensor) -> Noise:
    model = plan.schedule.noise
    return brownian_noise(seeds, like, model.sigma_min, model.sigma_max)


def _torchsde_path(plan: Plan, seeds: Sequence[int], like: Tensor) -> Noise:
    return torchsde_noise(seeds, like, min(filter(None, plan.sigmas)), plan.sigmas[0])


_PATHS: Mapping[str, Callable[[Plan, Sequence[int], Tensor], Noise]] = {"own": _own_path, "torchsde": _torchsde_path}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """What `on_step` is told: step `index` (from 0) of `steps` is done and reached `sigma`, after `calls` model calls
    in all. `x0` (B, C, h, w) is the model's latest estimate of the clean latents, for a preview. `steps` is None where
    it isn't known (dpm_adaptive)."""

    index: int
    steps: int | None
    sigma: float
    calls: int
    x0: Tensor = field(repr=False)


OnStep = Callable[[StepInfo], None]


def run(
    plan: Plan,
    predict: Predict,
    x: Tensor,
    *,
    prediction: str = "epsilon",
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    inpaint: Inpaint | None = None,
) -> Tensor:
    """Walk the plan from x (`enter`) and return latents (B, C, h, w), out of σ-space.

    `predict` is the model's raw answer (`denoiser.Predict`, usually from `guidance.guide`), `prediction` its kind.
    `noise` is needed when `plan.draws_noise` (`step_noise` makes it). `on_step` may raise to stop. dpm_adaptive's step
    sizes follow the worst picture of the batch: run it one picture at a time to be independent of neighbours. Raises
    `InvalidRequest` where `noise` is missing, and what dpm_adaptive raises.
    """
    if not plan.steps:
        return x
    if plan.draws_noise and noise is None:
        raise InvalidRequest(f"sampler {plan.sampler!r} draws noise while it runs: pass noise")
    walk = _WALKS[plan.sampler]
    if inpaint is not None:
        x = inpaint.before_first(x, plan.sigmas[0])
    calls = 0

    def counted(x_in: Tensor, t: float, sigma: float) -> Tensor:
        """Call `predict` on x_in (B, C, h, w), and count it."""
        nonlocal calls
        calls += 1
        return predict(x_in, t, sigma)

    after = _after(plan, on_step, inpaint, lambda: calls)
    denoise = denoiser(counted, plan.schedule.times(), prediction)
    x = walk(plan, denoise, x, noise or _no_noise, after)
    if plan.sampler in PROFILES[plan.schedule.profile].final_draws and noise is not None:
        # the program draws here too and multiplies by 0: the caller's generator must move on as much
        noise(plan.sigmas[-2], plan.sigmas[-1])
    x = x * plan.schedule.leaving_scale
    return x if inpaint is None else inpaint.at_end(x)


def _after(plan: Plan, on_step: OnStep | None, inpaint: Inpaint | None, calls: Callable[[], int]) -> After:
    steps = plan.steps if SAMPLERS[plan.sampler].takes_steps else None

    def after(step: Step) -> Tensor:
        x = step.x
        if inpaint is not None and step.sigma_next != plan.schedule.final_sigma:
            x = inpaint.between(x, step.sigma_next)
        if on_step is not None:
            on_step(StepInfo(index=step.index, steps=steps, sigma=step.sigma_next, calls=calls(), x0=step.x0))
        return x

    return after


def _no_noise(sigma: float, sigma_next: float) -> Tensor:
    raise InvalidRequest("this sampler drew noise without being given any")


_Walk = Callable[[Plan, Denoise, Tensor, Noise, After], Tensor]


def _deterministic(sampler: Callable[[Denoise, Tensor, Sequence[float], After], Tensor]) -> _Walk:
    return lambda plan, denoise, x, noise, after: sampler(denoise, x, plan.sigmas, after)


def _stochastic(sampler: Callable[[Denoise, Tensor, Sequence[float], Noise, After], Tensor]) -> _Walk:
    return lambda plan, denoise, x, noise, after: sampler(denoise, x, plan.sigmas, noise, after)


def _walk_plms(plan: Plan, denoise: Denoise, x: Tensor, noise: Noise, after: After) -> Tensor:
    average = PROFILES[plan.schedule.profile].averages_single_step
    return samplers.plms(denoise, x, plan.sigmas, after, average_single_step=average)


def _walk_ddim(plan: Plan, denoise: Denoise, x: Tensor, noise: Noise, after: After) -> Tensor:
    return stochastic.ddim(denoise, x, plan.sigmas, noise, after, eta=plan.eta)


def _walk_deis(plan: Plan, denoise: Denoise, x: Tensor, noise: Noise, after: After) -> Tensor:
    return samplers.deis(denoise, x, plan.sigmas, after, listed=len(plan.schedule.points))


def _walk_lcm(plan: Plan, denoise: Denoise, x: Tensor, noise: Noise, after: After) -> Tensor:
    return stochastic.lcm(consistency(denoise, plan.schedule.times()), x, plan.sigmas, noise, after)


def _walk_adaptive(plan: Plan, denoise: Denoise, x: Tensor, noise: Noise, after: After) -> Tensor:
    return dpm_adaptive(denoise, x, *plan.sigmas, rtol=plan.rtol, atol=plan.atol, after=after).x


_WALKS: Mapping[str, _Walk] = {
    "plms": _walk_plms,
    "ddim": _walk_ddim,
    "ddpm": _stochastic(stochastic.euler_ancestral),
    "k_lms": _deterministic(samplers.k_lms),
    "euler": _deterministic(samplers.euler),
    "euler_ancestral": _stochastic(stochastic.euler_ancestral),
    "heun": _deterministic(samplers.heun),
    "dpm2": _deterministic(samplers.dpm2),
    "dpm2_ancestral": _stochastic(stochastic.dpm2_ancestral),
    "dpmpp_2s_ancestral": _stochastic(stochastic.dpmpp_2s_ancestral),
    "dpmpp_2m": _deterministic(samplers.dpmpp_2m),
    "dpmpp_sde": _stochastic(stochastic.dpmpp_sde),
    "dpmpp_2m_sde": _stochastic(stochastic.dpmpp_2m_sde),
    "dpmpp_3m_sde": _stochastic(stochastic.dpmpp_3m_sde),
    "unipc": _deterministic(samplers.unipc),
    "deis": _walk_deis,
    "ipndm": _deterministic(samplers.ipndm),
    "lcm": _walk_lcm,
    "dpm_adaptive": _walk_adaptive,
}
