"""The list of points a sampler walks, with the scales on entering and leaving. Needs no torch.

A point is a pair (t, σ): σ is the noise level in σ-space (x = x0 + σ·noise), t the timestep shown to the model. They
are kept together because programs pair them differently (rounded timesteps, σ linear or log-linear in between).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sfumato.choices import check_choice
from sfumato.diffusion.noise_schedule import NoiseSchedule
from sfumato.diffusion.profiles import PROFILES, Profile
from sfumato.diffusion.sampler_info import SAMPLERS, SamplerInfo, check_spacing
from sfumato.diffusion.spacing import SPACING_RULES, Choice, Point
from sfumato.errors import InvalidRequest

__all__ = ["NoiseSchedule", "Point", "Schedule", "make_schedule"]


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


_STOPS_AT_LAST = ("first", "timestep", "leading", "shortened")  # where the web UI's list ends with timestep 1


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
    points = _strictly_falling_sigmas(
        SPACING_RULES[spacing](Choice(noise, info, rules, steps + extra, notes)), noise, notes
    )
    if extra:
        points = points[:-1]
    final = noise.sigma_min if info.final == "first" else 0.0
    if info.final == "first" and spacing not in ("leading", "trailing", "linspace"):
        final = 0.0
    final_t = 0.0
    if info.grid == "adaptive":
        points, final = points[:1], noise.sigma_min
    elif (info.final, info.grid, spacing, rules.leading) == _STOPS_AT_LAST and len(points) > 1:
        # that entry is where to stop, not a point to evaluate at
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


def _strictly_falling_sigmas(points: Iterable[Point], noise: NoiseSchedule, notes: list[str]) -> list[Point]:
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
