"""Image-to-image: what `strength` means, by each program's rule. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sfumato.diffusion.profiles import PROFILES
from sfumato.diffusion.sampler_info import SAMPLERS
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import InvalidRequest


def image_start(schedule: Schedule, steps: int, strength: float) -> tuple[int, float]:
    """The index of the first point walked from a picture, and the σ the picture is noised to.

    `strength` is the share of the `steps` asked for, from 0 (nothing is walked: the index is the number of points) to
    1; any but 0 walks at least a step. Raises `InvalidRequest` for one outside, or that the sampler can't have.
    """
    if not 0.0 <= strength <= 1.0:
        raise InvalidRequest(f"strength {strength:g} must be from 0 to 1")
    if SAMPLERS[schedule.sampler].grid == "adaptive":
        if strength not in (0.0, 1.0):
            raise InvalidRequest(
                f"strength {strength:g} has no meaning for sampler 'dpm_adaptive', which has no steps to leave out: "
                "use another sampler"
            )
        return (0 if strength else 1), schedule.sigmas[0]
    count = len(schedule.points)
    if strength == 0.0:
        return count, schedule.final_sigma
    walked, mismatched = _RULES[PROFILES[schedule.profile].img2img](schedule, steps, strength)
    start = count - min(max(walked, 1), count)
    return start, schedule.sigmas[max(start - 1, 0) if mismatched else start]


def _diffusers_start(schedule: Schedule, steps: int, strength: float) -> tuple[int, bool]:
    """diffusers walks the last int(S·strength) points. Not followed: with PNDM it counts in its list with the doubled
    entry, repeats one step and skips the next; with LMS it takes the weights of a history that isn't there yet."""
    return int(steps * strength), False


def _compvis_start(schedule: Schedule, steps: int, strength: float) -> tuple[int, bool]:
    """CompVis walks as many, but DDIM's family noises the picture one point higher than where it starts (img2img.py:
    `stochastic_encode` at index K, `decode` from K − 1)."""
    return int(steps * strength), schedule.sampler in ("ddim", "plms")


def _a1111_start(schedule: Schedule, steps: int, strength: float) -> tuple[int, bool]:
    """The web UI walks one step more with the k-samplers; DDIM and PLMS as CompVis, less the last point, where they
    only stop."""
    count = int(min(strength, 0.999) * steps)
    listed = SAMPLERS[schedule.sampler].grid == "timestep"
    return (count - 1, True) if listed else (count + 1, False)


_RULES: Mapping[str, Callable[[Schedule, int, float], tuple[int, bool]]] = {
    "diffusers": _diffusers_start,
    "compvis": _compvis_start,
    "a1111": _a1111_start,
}
