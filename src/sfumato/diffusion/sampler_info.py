"""Samplers and spacings as data, and which go together. Imports nothing heavy: the command line lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sfumato.choices import check_choice
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
        """Whether the sampler always draws noise while it runs (DDIM does so only with η > 0)."""
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


def check_spacing(sampler: str, spacing: str) -> None:
    """Raise `InvalidRequest` if this sampler can't walk this spacing, saying why and which it can."""
    check_choice("spacing", spacing, SPACINGS)
    info = SAMPLERS[sampler]
    if spacing not in info.spacings:
        raise InvalidRequest(
            f"sampler {sampler!r} can't use the spacing {spacing!r}: {info.excluded}; use {', '.join(info.spacings)}",
            field="spacing",
        )


def impossible_pairs() -> tuple[tuple[str, str, str], ...]:
    """Every (sampler, spacing, reason) that `check_spacing` refuses."""
    return tuple(
        (info.name, spacing, info.excluded)
        for info in SAMPLERS.values()
        for spacing in SPACINGS
        if spacing not in info.spacings
    )
