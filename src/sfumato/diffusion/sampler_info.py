"""What can be chosen: samplers, spacings and profiles, as data. Imports nothing heavy: the command line lists it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from sfumato.errors import InvalidRequest

Grid = Literal["timestep", "sigma", "logsnr", "distilled", "adaptive"]
"""Which list a sampler walks by default in diffusers: whole timesteps (DDIM's family), fractional timesteps from the
last to 0 (k-diffusion's family), whole timesteps without the last (DPM-Solver's family), the steps LCM was distilled
on, or none (the step size is found while running)."""

SPACINGS: Mapping[str, str] = {
    "leading": "multiples of N // steps, plus 1: CompVis, and diffusers' DDIM and PNDM",
    "trailing": "from the last timestep down in equal strides (Lin et al. 2023, Table 2)",
    "linspace": "equal strides from the last timestep to 0, σ linear between whole timesteps: diffusers' Euler and LMS",
    "k-diffusion": "equal strides from the last timestep to 0, log σ linear between whole timesteps",
    "karras": "σ^(1/7) in equal strides (Karras et al. 2022, eq. 5)",
    "exponential": "log σ in equal strides",
    "beta": "σ at quantiles of the Beta(0.6, 0.6) distribution (Lee et al. 2024)",
    "align-your-steps": "the ten steps optimised for Stable Diffusion v1 (Sabour et al. 2024), interpolated in log σ",
}

_STRIDES = ("leading", "trailing", "linspace")
_ALL = tuple(SPACINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerInfo:
    """A sampler's facts.

    `order` is that of its steps once it has enough history. A run of n steps calls the model
    `calls[0] * n + calls[1]` times (`model_calls` knows the exceptions). `noise` says what it draws: nothing,
    independent noise, or the increments of a Brownian path. `final` is the σ it stops at: "zero", or "first", the
    noise of timestep 0. `excluded` says why the other spacings make no sense.
    """

    name: str
    order: int
    calls: tuple[int, int] = (1, 0)
    noise: Literal["none", "white", "brownian"] = "none"
    takes_eta: bool = False
    grid: Grid = "sigma"
    final: Literal["zero", "first"] = "zero"
    spacings: tuple[str, ...] = _ALL
    excluded: str = ""
    source: str
    description: str

    @property
    def stochastic(self) -> bool:
        """Whether it always draws noise while it runs (DDIM does so only with η > 0)."""
        return self.noise != "none" and not self.takes_eta

    @property
    def takes_steps(self) -> bool:
        """Whether the number of steps is the user's choice."""
        return self.grid != "adaptive"

    @property
    def calls_text(self) -> str:
        """Model calls in words, for n steps."""
        if not self.takes_steps:
            return "as many as the tolerances need"
        slope, extra = self.calls
        return ("n" if slope == 1 else f"{slope}n") + (f" {'+' if extra > 0 else '−'} {abs(extra)}" if extra else "")


_WALKS_TIMESTEPS = "it walks the model's own timesteps (euler is the same step as ddim and takes every spacing)"

SAMPLERS: Mapping[str, SamplerInfo] = {
    info.name: info
    for info in (
        SamplerInfo(
            name="plms",
            order=4,
            calls=(1, 1),
            grid="timestep",
            final="first",
            spacings=_STRIDES,
            excluded="its weights assume timesteps in equal strides",
            source="Liu et al. 2022 (PNDM), as in CompVis' plms.py",
            description="Adams–Bashforth on the noise, started with one averaged step; the original's default",
        ),
        SamplerInfo(
            name="ddim",
            order=1,
            noise="white",
            takes_eta=True,
            grid="timestep",
            final="first",
            spacings=_STRIDES,
            excluded=_WALKS_TIMESTEPS,
            source="Song et al. 2020 (DDIM), eq. 12 and 16",
            description="first order; η from 0 (deterministic) to 1 (ancestral)",
        ),
        SamplerInfo(
            name="ddpm",
            order=1,
            noise="white",
            grid="timestep",
            spacings=_STRIDES,
            excluded=_WALKS_TIMESTEPS,
            source="Ho et al. 2020 (DDPM), eq. 7",
            description="the training process run backwards, with the smaller variance; wants many steps",
        ),
        SamplerInfo(
            name="k_lms",
            order=4,
            source="Crowson, k-diffusion: sample_lms",
            description="linear multistep with exact weights for unequal steps",
        ),
        SamplerInfo(
            name="euler",
            order=1,
            source="Karras et al. 2022, Alg. 1 without churn",
            description="the plain first-order step",
        ),
        SamplerInfo(
            name="euler_ancestral",
            order=1,
            noise="white",
            source="Crowson, k-diffusion: sample_euler_ancestral",
            description="Euler to a lower noise level, then fresh noise: never settles as steps grow",
        ),
        SamplerInfo(
            name="heun",
            order=2,
            calls=(2, -1),
            source="Karras et al. 2022, Alg. 1 without churn",
            description="trapezoidal step, two model calls each",
        ),
        SamplerInfo(
            name="dpm2",
            order=2,
            calls=(2, -1),
            source="Crowson, k-diffusion: sample_dpm_2; Karras et al. 2022, Alg. 2",
            description="midpoint step in log σ, two model calls each",
        ),
        SamplerInfo(
            name="dpm2_ancestral",
            order=2,
            calls=(2, -1),
            noise="white",
            source="Crowson, k-diffusion: sample_dpm_2_ancestral",
            description="dpm2 to a lower noise level, then fresh noise",
        ),
        SamplerInfo(
            name="dpmpp_2s_ancestral",
            order=2,
            calls=(2, -1),
            noise="white",
            source="Lu et al. 2022 (DPM-Solver++), Alg. 1; Crowson, k-diffusion: sample_dpmpp_2s_ancestral",
            description="second-order single steps to a lower noise level, then fresh noise",
        ),
        SamplerInfo(
            name="dpmpp_2m",
            order=2,
            grid="logsnr",
            source="Lu et al. 2022 (DPM-Solver++), Alg. 2",
            description="second-order multistep on the denoised picture; good from 15 steps",
        ),
        SamplerInfo(
            name="dpmpp_sde",
            order=2,
            calls=(2, -1),
            noise="brownian",
            source="Crowson, k-diffusion: sample_dpmpp_sde",
            description="stochastic DPM-Solver++, two half steps on a Brownian path",
        ),
        SamplerInfo(
            name="dpmpp_2m_sde",
            order=2,
            noise="brownian",
            grid="logsnr",
            source="Lu et al. 2022 (DPM-Solver++), App. D; Crowson, k-diffusion: sample_dpmpp_2m_sde",
            description="stochastic second-order multistep; one call a step",
        ),
        SamplerInfo(
            name="dpmpp_3m_sde",
            order=3,
            noise="brownian",
            grid="logsnr",
            source="Crowson, k-diffusion: sample_dpmpp_3m_sde",
            description="stochastic third-order multistep; wants 30 steps or more",
        ),
        SamplerInfo(
            name="unipc",
            order=2,
            grid="logsnr",
            source="Zhao et al. 2023 (UniPC), Alg. 1 and 2, B₂",
            description="predictor and corrector from the same model call; good from 10 steps",
        ),
        SamplerInfo(
            name="deis",
            order=2,
            grid="logsnr",
            final="first",
            source="Zhang & Chen 2022 (DEIS), log ρ",
            description="exponential integrator with the slope linear in log σ",
        ),
        SamplerInfo(
            name="ipndm",
            order=4,
            grid="timestep",
            final="first",
            spacings=(*_STRIDES, "k-diffusion"),
            excluded="its weights assume timesteps in equal strides",
            source="Zhang & Chen 2022, eq. 37 to 40",
            description="plms without the averaged first step",
        ),
        SamplerInfo(
            name="lcm",
            order=1,
            noise="white",
            grid="distilled",
            spacings=("trailing",),
            excluded="latent consistency models know only the timesteps they were distilled on",
            source="Luo et al. 2023 (LCM), Alg. 3",
            description="for latent consistency models only: 1 to 8 steps, guidance scale about 1 to 2",
        ),
        SamplerInfo(
            name="dpm_adaptive",
            order=3,
            grid="adaptive",
            final="first",
            spacings=("k-diffusion",),
            excluded="it finds its own steps from rtol and atol",
            source="Lu et al. 2022 (DPM-Solver), App. C; Crowson, k-diffusion: sample_dpm_adaptive",
            description="third order with a step size from tolerances; the number of steps is ignored",
        ),
    )
}


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


def check_choice(field: str, value: object, choices: Collection[str]) -> None:
    """Raise `InvalidRequest` unless `value` is one of `choices`; the message gives the nearest and all of them."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value).lower().replace("-", "_"), choices, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ":"
    raise InvalidRequest(f"{field} {value!r} is unknown{hint} choose from {', '.join(choices)}", field=field)


def check_spacing(sampler: str, spacing: str) -> None:
    """Raise `InvalidRequest` if this sampler can't walk this spacing, saying why and which it can."""
    check_choice("spacing", spacing, SPACINGS)
    info = SAMPLERS[sampler]
    if spacing not in info.spacings:
        raise InvalidRequest(
            f"sampler {sampler!r} can't use the spacing {spacing!r}: {info.excluded}; use {', '.join(info.spacings)}",
            field="spacing",
        )


def follows_path(sampler: str, profile: str) -> bool:
    """Whether a sampler's noise under a profile is a Brownian path's, from a seed, and not independent draws."""
    return SAMPLERS[sampler].noise == "brownian" and sampler not in PROFILES[profile].independent_noise


def impossible_pairs() -> tuple[tuple[str, str, str], ...]:
    """Every (sampler, spacing, reason) that `check_spacing` refuses."""
    return tuple(
        (info.name, spacing, info.excluded)
        for info in SAMPLERS.values()
        for spacing in SPACINGS
        if spacing not in info.spacings
    )


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
