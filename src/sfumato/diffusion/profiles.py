"""The conventions of the programs people have pictures from, as data. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sfumato.diffusion.sampler_info import SAMPLERS, Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A program's conventions: what has to agree for its seeds to give its pictures.

    `samplers`: those the program has; for the others the profile is our extension. `spacing`: default per sampler.
    `leading`: how it lists `steps` leading timesteps: "exact" takes exactly that many; "range" takes all multiples
    below N (7 steps become 8) and drops an index N; "shortened" is "range" with an index N made N − 1, and its last
    entry used only as the place to stop. `entry`: the scale of the starting noise, "variance" √(1 + σ²) as
    diffusers has it for all but the k-samplers, "sigma" plain σ for all but DDIM's family. `integer_t`: whether
    DPM-Solver's family shows the model whole timesteps. `averages_single_step`: whether PLMS with one step still
    averages two calls. `discards_penultimate`: samplers run with one step more and without the last σ above 0.
    `ays_keeps_last`: whether the smallest σ of align-your-steps is walked, or replaced by 0. `final_draws`: samplers
    that draw noise after the last step too, unused, which moves the generator on. `rounding`: how decoded pixels
    become bytes. `brownian`: whose tree the SDE samplers' paths come from; torchsde's needs the extra `sde`.
    `independent_noise`: samplers that the program gives independent draws instead.
    `clips_negative`: whether `clip_skip` holds for the negative prompt too.
    `img2img`, `inpaint`: whose rules a run from a picture follows (`sampling`, `inpaint`).
    """

    name: str
    description: str
    samplers: tuple[str, ...]
    spacing: Mapping[str, str]
    leading: Literal["exact", "range", "shortened"] = "exact"
    entry: Literal["variance", "sigma"] = "variance"
    integer_t: bool = True
    averages_single_step: bool = False
    discards_penultimate: tuple[str, ...] = ()
    ays_keeps_last: bool = False
    final_draws: tuple[str, ...] = ()
    rounding: Literal["round", "truncate"] = "round"
    brownian: Literal["own", "torchsde"] = "own"
    independent_noise: tuple[str, ...] = ()
    clips_negative: bool = True
    img2img: Literal["diffusers", "compvis", "a1111"] = "diffusers"
    inpaint: Literal["diffusers", "compvis"] = "diffusers"


_GRID_SPACING: Mapping[Grid, str] = {
    "timestep": "leading",
    "sigma": "linspace",
    "logsnr": "linspace",
    "distilled": "trailing",
    "adaptive": "k-diffusion",
}


def _spacing(**changes: str) -> Mapping[str, str]:
    """Default spacing of every sampler: diffusers' own for its kind of grid, except for `changes`."""
    return {name: _GRID_SPACING[info.grid] for name, info in SAMPLERS.items()} | {
        name: spacing for name, spacing in changes.items() if name in SAMPLERS
    }


_K_DIFFUSION_SPACING = {
    name: "k-diffusion" for name, info in SAMPLERS.items() if info.grid in ("sigma", "logsnr", "adaptive")
}

PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="diffusers",
            description="Hugging Face diffusers with the published scheduler configuration",
            samplers=tuple(
                name for name in SAMPLERS if name not in ("dpmpp_2s_ancestral", "dpmpp_3m_sde", "dpm_adaptive")
            ),
            spacing=_spacing(),
            final_draws=("ddpm", "euler_ancestral", "dpmpp_2m_sde"),
            independent_noise=("dpmpp_2m_sde",),
            clips_negative=False,
        ),
        Profile(
            name="compvis",
            description="the original scripts, CompVis/stable-diffusion",
            samplers=("plms", "ddim"),
            spacing=_spacing(),
            leading="range",
            averages_single_step=True,
            rounding="truncate",
            img2img="compvis",
            inpaint="compvis",
        ),
        Profile(
            name="k-diffusion",
            description="Crowson's k-diffusion around the original model",
            samplers=tuple(name for name in _K_DIFFUSION_SPACING if name not in ("unipc", "deis")),
            spacing=_spacing(**_K_DIFFUSION_SPACING),
            entry="sigma",
            integer_t=False,
            brownian="torchsde",
        ),
        Profile(
            name="a1111",
            description="AUTOMATIC1111's web UI with its automatic schedule per sampler",
            samplers=tuple(name for name in SAMPLERS if name not in ("ddpm", "unipc", "deis", "ipndm", "lcm")),
            spacing=_spacing(
                **_K_DIFFUSION_SPACING
                | {
                    "dpm2": "karras",
                    "dpm2_ancestral": "karras",
                    "dpmpp_2s_ancestral": "karras",
                    "dpmpp_2m": "karras",
                    "dpmpp_sde": "karras",
                    "dpmpp_2m_sde": "exponential",
                    "dpmpp_3m_sde": "exponential",
                }
            ),
            leading="shortened",
            entry="sigma",
            integer_t=False,
            brownian="torchsde",
            averages_single_step=True,
            discards_penultimate=("dpm2", "dpm2_ancestral", "dpmpp_3m_sde"),
            ays_keeps_last=True,
            rounding="truncate",
            img2img="a1111",
        ),
    )
}


def follows_path(sampler: str, profile: str) -> bool:
    """Whether a sampler's noise under a profile is a Brownian path's, from a seed, and not independent draws."""
    return SAMPLERS[sampler].noise == "brownian" and sampler not in PROFILES[profile].independent_noise


def model_calls(sampler: str, steps: int, profile: str) -> int | None:
    """Number of model calls a run of `steps` steps makes; None where only running it tells (dpm_adaptive)."""
    info = SAMPLERS[sampler]
    if not info.takes_steps:
        return None
    if steps == 0:
        return 0
    if sampler == "plms" and steps == 1 and not PROFILES[profile].averages_single_step:
        return 1
    return info.calls[0] * steps + info.calls[1]
