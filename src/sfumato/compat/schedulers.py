"""diffusers' schedulers by their names, with the arguments and defaults of diffusers 0.42."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sfumato.compat.scheduler import SPACED_SIGMAS, Kind, Scheduler
from sfumato.errors import InvalidConfig

_TRAINING = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
_NARROW_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}  # defaults of the classes taken over from k-diffusion
_FREE = {  # mean nothing while the argument that switches them on is off
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "clip_sample_range": 1.0,
    "flow_shift": 1.0,
    "time_shift_type": "exponential",
}
_OFF = {"thresholding": False, "use_flow_sigmas": False, "use_dynamic_shifting": False}


def _kind(
    sampler: str | Mapping[str, str],
    *,
    timestep_spacing: str = "linspace",
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
    free: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    timestep_spacings: tuple[str, ...] = ("leading", "linspace", "trailing"),
    spacing: str | None = None,
    sigmas: tuple[str, ...] = (),
    sigmas_from_linspace: bool = False,
) -> Kind:
    """`fixed`: for each argument its default, then the values that mean what we do; one value is both."""
    fixed = fixed or {}
    algorithms = {} if isinstance(sampler, str) else {"algorithm_type": next(iter(sampler))}
    return Kind(
        samplers={None: sampler} if isinstance(sampler, str) else {name: sampler[name] for name in sampler},
        defaults={
            "timestep_spacing": timestep_spacing,
            "steps_offset": 0,
            **dict.fromkeys(sigmas, False),
            **{name: values[0] for name, values in fixed.items()},
            **(free or {}),
            **algorithms,
        },
        supported={name: values[1:] or values for name, values in fixed.items()},
        training=_TRAINING | dict(training or {}),
        timestep_spacings=timestep_spacings,
        spacing=spacing,
        spaced_sigmas=sigmas,
        sigmas_from_linspace=sigmas_from_linspace,
    )


def _off(*names: str) -> dict[str, tuple[Any, ...]]:
    return {name: (_OFF[name],) for name in names}


_ALL_SIGMAS = tuple(SPACED_SIGMAS)
_LOWER_ORDER = {"lower_order_final": (True, True, False)}  # with a final σ of 0 the last step is of order 1 anyhow
_SOLVER_TYPES = ("midpoint", "heun", "logrho", "bh1", "bh2")


class PNDMScheduler(Scheduler):
    """The sampler `plms`: the original's default. The Runge-Kutta start (`skip_prk_steps=False`) is not supported, nor
    "linspace", where diffusers steps between timesteps that aren't on its list (as it does for "trailing" unless the
    number of steps divides 1000).
    """

    kind = _kind(
        "plms",
        timestep_spacing="leading",
        timestep_spacings=("leading", "trailing"),
        fixed={"skip_prk_steps": (False, True), "set_alpha_to_one": (False,)},
    )


class LMSDiscreteScheduler(Scheduler):
    """The sampler `k_lms`."""

    kind = _kind("k_lms", sigmas=_ALL_SIGMAS, sigmas_from_linspace=True)


class DDIMScheduler(Scheduler):
    """The sampler `ddim`; its η is the pipeline's `eta`. `timestep_spacing` as with `PNDMScheduler`."""

    kind = _kind(
        "ddim",
        timestep_spacing="leading",
        timestep_spacings=("leading", "trailing"),
        fixed={"clip_sample": (True, False), "set_alpha_to_one": (True, False), **_off("thresholding")},
        free=_FREE,
    )


class DDPMScheduler(Scheduler):
    """The sampler `ddpm`."""

    kind = _kind(
        "ddpm",
        timestep_spacing="leading",
        fixed={"clip_sample": (True, False), "variance_type": ("fixed_small",), **_off("thresholding")},
        free=_FREE,
    )


class EulerDiscreteScheduler(Scheduler):
    """The sampler `euler`."""

    kind = _kind(
        "euler",
        fixed={
            "interpolation_type": ("linear",),
            "timestep_type": ("discrete",),
            "final_sigmas_type": ("zero",),
            "sigma_min": (None,),
            "sigma_max": (None,),
        },
        sigmas=_ALL_SIGMAS,
        sigmas_from_linspace=True,
    )


class EulerAncestralDiscreteScheduler(Scheduler):
    """The sampler `euler_ancestral`."""

    kind = _kind("euler_ancestral")


class HeunDiscreteScheduler(Scheduler):
    """The sampler `heun`."""

    kind = _kind(
        "heun",
        fixed={"clip_sample": (False,)},
        free={"clip_sample_range": 1.0},
        training=_NARROW_BETAS,
        sigmas=_ALL_SIGMAS,
        sigmas_from_linspace=True,
    )


class KDPM2DiscreteScheduler(Scheduler):
    """The sampler `dpm2`."""

    kind = _kind("dpm2", training=_NARROW_BETAS, sigmas=_ALL_SIGMAS, sigmas_from_linspace=True)


class KDPM2AncestralDiscreteScheduler(Scheduler):
    """The sampler `dpm2_ancestral`. With `use_karras_sigmas` half the timesteps differ by a rounding: 1e-3 in the
    latents."""

    kind = _kind("dpm2_ancestral", training=_NARROW_BETAS, sigmas=_ALL_SIGMAS, sigmas_from_linspace=True)


class DPMSolverMultistepScheduler(Scheduler):
    """The sampler `dpmpp_2m`, or with `algorithm_type="sde-dpmsolver++"` `dpmpp_2m_sde`."""

    kind = _kind(
        {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"},
        fixed={
            "solver_order": (2,),
            "solver_type": ("midpoint", "midpoint", "logrho", "bh1", "bh2"),  # all of them made "midpoint" by diffusers
            "final_sigmas_type": ("zero",),
            "use_lu_lambdas": (False,),
            "lambda_min_clipped": (-math.inf,),
            "variance_type": (None,),
            **_LOWER_ORDER,
            **_off("thresholding", "use_flow_sigmas", "use_dynamic_shifting"),
        },
        free={**_FREE, "euler_at_final": False},
        sigmas=_ALL_SIGMAS,
    )


class DPMSolverSDEScheduler(Scheduler):
    """The sampler `dpmpp_sde`. Its noise is ours, seeded from the generator, not torchsde's: the same seeds give other
    pictures."""

    kind = _kind(
        "dpmpp_sde",
        fixed={"noise_sampler_seed": (None,)},
        training=_NARROW_BETAS,
        sigmas=_ALL_SIGMAS,
        sigmas_from_linspace=True,
    )


class UniPCMultistepScheduler(Scheduler):
    """The sampler `unipc`."""

    kind = _kind(
        "unipc",
        fixed={
            "solver_order": (2,),
            "solver_type": ("bh2", "bh2", "midpoint", "heun", "logrho"),  # all of them made "bh2" by diffusers
            "predict_x0": (True,),
            "disable_corrector": ([],),
            "solver_p": (None,),
            "final_sigmas_type": ("zero",),
            "sigma_min": (None,),
            "sigma_max": (None,),
            "shift_terminal": (None,),
            **_LOWER_ORDER,
            **_off("thresholding", "use_flow_sigmas", "use_dynamic_shifting"),
        },
        free=_FREE,
        sigmas=_ALL_SIGMAS,
    )


class DEISMultistepScheduler(Scheduler):
    """The sampler `deis`."""

    kind = _kind(
        {"deis": "deis", "dpmsolver": "deis", "dpmsolver++": "deis"},  # all of them made "deis" by diffusers
        fixed={
            "solver_order": (2,),
            "solver_type": ("logrho", *_SOLVER_TYPES),  # all of them made "logrho" by diffusers
            "lower_order_final": (True,),
            **dict.fromkeys(_ALL_SIGMAS, (False,)),
            **_off("thresholding", "use_flow_sigmas", "use_dynamic_shifting"),
        },
        free=_FREE,
    )


class LCMScheduler(Scheduler):
    """The sampler `lcm`, on the 50 timesteps such models are distilled on."""

    kind = _kind(
        "lcm",
        timestep_spacing="leading",
        fixed={
            "original_inference_steps": (50,),
            "timestep_scaling": (10.0,),
            "clip_sample": (False,),
            **_off("thresholding"),
        },
        free={**_FREE, "set_alpha_to_one": True},
        training={**_NARROW_BETAS, "beta_schedule": "scaled_linear"},
        spacing="trailing",
    )


SCHEDULERS: Mapping[str, type[Scheduler]] = {
    scheduler.__name__: scheduler
    for scheduler in (
        PNDMScheduler,
        LMSDiscreteScheduler,
        DDIMScheduler,
        DDPMScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        KDPM2DiscreteScheduler,
        KDPM2AncestralDiscreteScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSDEScheduler,
        UniPCMultistepScheduler,
        DEISMultistepScheduler,
        LCMScheduler,
    )
}


def scheduler_of(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler that a model's own `scheduler_config.json` names. Raises `InvalidConfig` for one we don't have."""
    name = config.get("_class_name", "PNDMScheduler")
    if name not in SCHEDULERS:
        raise InvalidConfig(f"the model's scheduler {name!r} is not supported: pass one of {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name].from_config(config)
