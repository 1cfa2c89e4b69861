"""What a choice of sampler, steps, spacing and profile means, as data: for `sfumato explain`. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.diffusion.profiles import PROFILES, model_calls
from sfumato.diffusion.sampler_info import SAMPLERS, SamplerInfo, impossible_pairs
from sfumato.diffusion.schedule import NoiseSchedule, Schedule, make_schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one profile does: its schedule, how many steps that has, and the model calls (None: known only by running).

    `native` tells whether the program has this sampler at all; where it hasn't, this is our extension of its rules.
    """

    profile: str
    native: bool
    schedule: Schedule
    steps: int
    model_calls: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A choice: the sampler's facts, what the chosen profile does, what each profile would do with its own default
    spacing (or the one asked for), and all pairs (sampler, spacing, why) that are refused."""

    info: SamplerInfo
    chosen: Choice
    profiles: tuple[Choice, ...]
    refused: tuple[tuple[str, str, str], ...]


def explain(
    noise: NoiseSchedule, *, sampler: str, steps: int, spacing: str | None = None, profile: str = "diffusers"
) -> Explanation:
    """Describe a choice without running it. Raises `InvalidRequest` as `make_schedule` does."""

    def choice(name: str) -> Choice:
        schedule = make_schedule(noise, sampler=sampler, steps=steps, spacing=spacing, profile=name)
        count = len(schedule.points)
        return Choice(
            profile=name,
            native=sampler in PROFILES[name].samplers,
            schedule=schedule,
            steps=count,
            model_calls=model_calls(sampler, count, name),
        )

    chosen = choice(profile)
    return Explanation(
        info=SAMPLERS[sampler],
        chosen=chosen,
        profiles=tuple(choice(name) for name in PROFILES),
        refused=impossible_pairs(),
    )
