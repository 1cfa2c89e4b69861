"""Noise levels: the training process (ᾱ per timestep) and the list of points a sampler walks. Needs no torch.

A point is a pair (t, σ): σ is the noise level in σ-space (x = x0 + σ·noise), t the timestep shown to the model. They
are kept together because programs pair them differently (rounded timesteps, σ linear or log-linear in between).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Self

from sfumato.diffusion.beta_quantile import beta_quantile
from sfumato.diffusion.catalog import PROFILES, SAMPLERS, Profile, SamplerInfo, check_choice, check_spacing
from sfumato.errors import InvalidConfig, InvalidRequest

RHO = 7.0
BETA = 0.6
ALIGN_YOUR_STEPS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""σ for Stable Diffusion v1, ten steps, from the authors' page (Sabour et al. 2024)."""

DISTILLED_STEPS = 50
"""Timesteps on which latent consistency models are distilled (Luo et al. 2023)."""

_FLOOR = 2.0**-24
"""Stands for ᾱ = 0 at the end of a zero-terminal-SNR schedule, whose σ would be infinite (as in diffusers)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """The training process: β for each timestep, and what follows from it, in float64.

    Fields carry the names and defaults of diffusers' `scheduler_config.json` as Stable Diffusion v1 fills them.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    alphas_cumprod: tuple[float, ...] = field(init=False, repr=False, compare=False)
    sigmas: tuple[float, ...] = field(init=False, repr=False, compare=False)
    log_sigmas: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        betas = self._betas()
        if not all(0.0 < beta < 1.0 for beta in betas):
            raise InvalidConfig("a noise schedule's betas must lie strictly between 0 and 1")
        alphas_cumprod: list[float] = []
        product = 1.0
        for beta in betas:
            product *= 1.0 - beta
            alphas_cumprod.append(product)
        if self.rescale_betas_zero_snr:
            alphas_cumprod = _zero_terminal_snr(alphas_cumprod)
        sigmas = tuple(math.sqrt((1.0 - alpha) / alpha) for alpha in alphas_cumprod)
        object.__setattr__(self, "alphas_cumprod", tuple(alphas_cumprod))
        object.__setattr__(self, "sigmas", sigmas)
        object.__setattr__(self, "log_sigmas", tuple(map(math.log, sigmas)))

    def _betas(self) -> Sequence[float]:
        if self.trained_betas is not None:
            if len(self.trained_betas) != self.num_train_timesteps:
                raise InvalidConfig(
                    f"trained_betas has {len(self.trained_betas)} values for num_train_timesteps "
                    f"{self.num_train_timesteps}"
                )
            return self.trained_betas
        if self.num_train_timesteps < 2:
            raise InvalidConfig(f"num_train_timesteps {self.num_train_timesteps} must be at least 2")
        if self.beta_schedule not in _BETAS:
            raise InvalidConfig(f"beta_schedule {self.beta_schedule!r} is not supported: use {', '.join(_BETAS)}")
        return _BETAS[self.beta_schedule](self.beta_start, self.beta_end, self.num_train_timesteps)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a `scheduler_config.json` of any diffusers scheduler class; keys that are no part of the training
        process (spacing, offset, prediction type) are left to others. Raises `InvalidConfig`."""
        trained = config.get("trained_betas")
        try:
            return cls(
                # a key that is absent had diffusers' default when the model was trained, not Stable Diffusion's value
                num_train_timesteps=int(config.get("num_train_timesteps", 1000)),
                beta_start=float(config.get("beta_start", 0.0001)),
                beta_end=float(config.get("beta_end", 0.02)),
                beta_schedule=config.get("beta_schedule", "linear"),
                trained_betas=None if trained is None else tuple(map(float, trained)),
                rescale_betas_zero_snr=bool(config.get("rescale_betas_zero_snr", False)),
            )
        except (TypeError, ValueError) as error:
            if isinstance(error, InvalidConfig):
                raise
            raise InvalidConfig(f"the scheduler configuration is malformed: {error}") from error

    @property
    def sigma_min(self) -> float:
        """σ of timestep 0."""
        return self.sigmas[0]

    @property
    def sigma_max(self) -> float:
        """σ of the last timestep."""
        return self.sigmas[-1]

    def sigma(self, t: float) -> float:
        """σ at timestep `t`, log-linear between whole timesteps (k-diffusion's `t_to_sigma`)."""
        low = min(max(math.floor(t), 0), self.num_train_timesteps - 1)
        if t <= low or low == self.num_train_timesteps - 1:
            return self.sigmas[low]
        weight = t - low
        return math.exp((1.0 - weight) * self.log_sigmas[low] + weight * self.log_sigmas[low + 1])

    def t(self, sigma: float) -> float:
        """Timestep at noise level `sigma` > 0: the inverse of `sigma()`, clipped to the first and last timestep."""
        log_sigma = math.log(sigma)
        high = bisect_right(self.log_sigmas, log_sigma)
        if high == 0:
            return 0.0
        if high == self.num_train_timesteps:
            return float(high - 1)
        below, above = self.log_sigmas[high - 1], self.log_sigmas[high]
        return high - 1 + (log_sigma - below) / (above - below)


def _linear(start: float, end: float, count: int) -> list[float]:
    return [start + (end - start) * i / (count - 1) for i in range(count)]


def _scaled_linear(start: float, end: float, count: int) -> list[float]:
    return [root**2 for root in _linear(math.sqrt(start), math.sqrt(end), count)]


_BETAS: Mapping[str, Callable[[float, float, int], list[float]]] = {
    "scaled_linear": _scaled_linear,
    "linear": _linear,
}


def _zero_terminal_snr(alphas_cumprod: Sequence[float]) -> list[float]:
    """Shift and scale √ᾱ so that the last is 0 and the first unchanged (Lin et al. 2023, Alg. 1)."""
    roots = [math.sqrt(alpha) for alpha in alphas_cumprod]
    first, last = roots[0], roots[-1]
    rescaled = [((root - last) * first / (first - last)) ** 2 for root in roots]
    return [*rescaled[:-1], _FLOOR]


@dataclass(frozen=True, slots=True)
class Point:
    """One place on a schedule: the timestep `t` shown to the model, and the noise level `sigma`."""

    t: float
    sigma: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What a sampler walks: `points` in order of falling σ, then `final_sigma`.

    `initial_scale` multiplies unit noise to enter at the first point, `leaving_scale` multiplies x at the end to
    become latents again. `final_t` is the timestep shown should a sampler evaluate at `final_sigma`. `notes` are
    one-line warnings: where this list isn't simply what was asked for.
    """

    noise: NoiseSchedule
    sampler: str
    spacing: str
    profile: str
    points: tuple[Point, ...]
    final_sigma: float
    final_t: float
    initial_scale: float
    leaving_scale: float
    notes: tuple[str, ...] = ()

    @property
    def sigmas(self) -> tuple[float, ...]:
        """σ of each point and the final one: one more than there are steps."""
        return (*(point.sigma for point in self.points), self.final_sigma)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Timestep of each point."""
        return tuple(point.t for point in self.points)

    def times(self) -> Callable[[float], float]:
        """The function from σ to the timestep to show: a listed σ's own t, others interpolated in log σ."""
        listed = {self.final_sigma: self.final_t} | {point.sigma: point.t for point in self.points}

        def time(sigma: float) -> float:
            t = listed.get(sigma)
            return self.noise.t(sigma) if t is None else t

        return time


def make_schedule(
    noise: NoiseSchedule, *, sampler: str, steps: int, spacing: str | None = None, profile: str = "diffusers"
) -> Schedule:
    """The points for `steps` steps of `sampler`. `spacing` None is the profile's choice.

    Timesteps outside 0…N−1 and repeated points are dropped, with a note, so the list can be shorter than `steps`
    (and by compvis' rule longer). σ strictly falls. Raises `InvalidRequest` for an unknown name, a spacing that makes
    no sense for the sampler, or `steps` outside 1…N.
    """
    check_choice("sampler", sampler, SAMPLERS)
    check_choice("profile", profile, PROFILES)
    info, rules = SAMPLERS[sampler], PROFILES[profile]
    spacing = rules.spacing[sampler] if spacing is None else spacing
    check_spacing(sampler, spacing)
    if not 1 <= steps <= noise.num_train_timesteps:
        raise InvalidRequest(f"steps {steps} must be from 1 to {noise.num_train_timesteps}")
    notes: list[str] = []
    extra = 1 if sampler in rules.discards_penultimate and steps < noise.num_train_timesteps else 0
    points = _falling(_SPACING_RULES[spacing](_Choice(noise, info, rules, steps + extra, notes)), noise, notes)
    if extra:
        points = points[:-1]
    final = noise.sigma_min if info.final == "first" else 0.0
    if info.final == "first" and spacing not in ("leading", "trailing", "linspace"):
        final = 0.0
    final_t = 0.0
    if info.grid == "adaptive":
        points, final = points[:1], noise.sigma_min
    elif info.final == "first" and spacing == "leading" and rules.leading == "shortened" and len(points) > 1:
        # the last entry is where to stop, not a point to evaluate at
        final, final_t = points[-1].sigma, points[-1].t
        points = points[:-1]
    elif rules.averages_single_step:
        final_t = points[-1].t
    if points[-1].sigma <= final:
        notes.append("the list already ends at timestep 0: the last step goes on to σ = 0")
        final = 0.0
    return Schedule(
        noise=noise,
        sampler=sampler,
        spacing=spacing,
        profile=profile,
        points=tuple(points),
        final_sigma=final,
        final_t=final_t,
        initial_scale=_initial_scale(info, spacing, rules, points[0].sigma),
        # k-diffusion returns dpm_adaptive's x as it stands
        leaving_scale=1.0 if info.grid == "adaptive" else 1.0 / math.sqrt(1.0 + final**2),
        notes=tuple(notes),
    )


def _initial_scale(info: SamplerInfo, spacing: str, rules: Profile, sigma: float) -> float:
    variance = math.sqrt(1.0 + sigma**2)
    if info.grid in ("timestep", "distilled"):
        return variance
    if rules.entry == "sigma" or info.grid == "adaptive":
        return sigma
    return variance if info.grid == "logsnr" or spacing == "leading" else sigma


def _falling(points: Iterable[Point], noise: NoiseSchedule, notes: list[str]) -> list[Point]:
    """Clip timesteps to the last one, then drop points that don't lower σ."""
    last = noise.num_train_timesteps - 1
    kept: list[Point] = []
    dropped = 0
    for point in points:
        inside = point if point.t <= last else Point(float(last), noise.sigma_max)
        if kept and inside.sigma >= kept[-1].sigma:
            dropped += 1
            continue
        kept.append(inside)
    if dropped:
        notes.append(f"dropped {dropped} repeated timestep{'s' if dropped > 1 else ''}: {len(kept)} steps remain")
    return kept


@dataclass(frozen=True, slots=True)
class _Choice:
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


def _leading(choice: _Choice) -> list[Point]:
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


def _trailing(choice: _Choice) -> list[Point]:
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


def _linspace(choice: _Choice) -> list[Point]:
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


def _k_diffusion(choice: _Choice) -> list[Point]:
    return [Point(t, choice.noise.sigma(t)) for t in choice.strides(choice.steps)]


def _ramp(steps: int) -> list[float]:
    """From 0 to 1 in `steps` values."""
    return [i / (steps - 1) for i in range(steps)] if steps > 1 else [0.0]


def _karras(choice: _Choice) -> list[Point]:
    low, high = choice.noise.sigma_min, choice.noise.sigma_max
    low_root, high_root = low ** (1.0 / RHO), high ** (1.0 / RHO)
    sigmas = [(high_root + ramp * (low_root - high_root)) ** RHO for ramp in _ramp(choice.steps)]
    return choice.with_inverse_t("karras", _exact_ends(sigmas, low, high))


def _exponential(choice: _Choice) -> list[Point]:
    low, high = choice.noise.sigma_min, choice.noise.sigma_max
    sigmas = [high * (low / high) ** ramp for ramp in _ramp(choice.steps)]
    return choice.with_inverse_t("exponential", _exact_ends(sigmas, low, high))


def _beta(choice: _Choice) -> list[Point]:
    low, high = choice.noise.sigma_min, choice.noise.sigma_max
    sigmas = [low + beta_quantile(1.0 - ramp, BETA) * (high - low) for ramp in _ramp(choice.steps)]
    return choice.with_inverse_t("beta", _exact_ends(sigmas, low, high))


def _exact_ends(sigmas: list[float], low: float, high: float) -> list[float]:
    """Remove the rounding error at both ends, so that they are the model's own levels to the last bit."""
    return [high] if len(sigmas) == 1 else [high, *sigmas[1:-1], low]


def _align_your_steps(choice: _Choice) -> list[Point]:
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


_SPACING_RULES: Mapping[str, Callable[[_Choice], list[Point]]] = {
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

_WHOLE_T: Mapping[tuple[str, str], Callable[[float], int]] = (
    {(name, "karras"): round for name in (*_LOGSNR, "dpm2", "dpm2_ancestral")}
    | {(name, spacing): _just_below for name in _LOGSNR for spacing in ("exponential", "beta")}
)
"""Where diffusers turns the timestep of a given σ into a whole number, and how."""


def is_falling(sigmas: Sequence[float]) -> bool:
    """Whether each σ is below the one before."""
    return all(low < high for high, low in pairwise(sigmas))
