"""diffusers' schedulers by their names and arguments, each a description of one of our samplers.

A scheduler here walks nothing: it holds a configuration, says which sampler and spacing that is, and refuses what we
would do differently. Arguments and defaults are those of diffusers 0.42.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.errors import InvalidConfig, ModelNotFound

logger = logging.getLogger("sfumato")


class Config(dict[str, Any]):
    """A scheduler's arguments, by name or as attributes. `given` are those that are not just the class's defaults.

    Beside its own arguments it holds those of other classes that it was made from, for classes to be made from it.
    """

    def __init__(self, values: Mapping[str, Any], given: frozenset[str]) -> None:
        super().__init__(values)
        self.given = given

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this scheduler's configuration has no {name!r}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What one class of diffusers is here.

    `samplers` maps its `algorithm_type` (None for classes without one) to our sampler. `defaults` are all its arguments
    but those of the training process, which are `training`; `supported` lists, for each that must be checked, the
    values with which it does what our sampler does. `timestep_spacings` can be chosen from, `spacing` is set where the
    class looks at none. `spaced_sigmas` are the flags for lists of σ that agree with ours; `sigmas_from_linspace` says
    that these lie between the ends of the timesteps' list, so that only "linspace" gives the whole range.
    """

    samplers: Mapping[str | None, str]
    defaults: Mapping[str, Any]
    supported: Mapping[str, tuple[Any, ...]]
    training: Mapping[str, Any]
    timestep_spacings: tuple[str, ...] = ("leading", "linspace", "trailing")
    spacing: str | None = None
    spaced_sigmas: tuple[str, ...] = ()
    sigmas_from_linspace: bool = False


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
_SPACED_SIGMAS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}
# What diffusers' pipelines themselves put right, with a warning, in the scheduler they are loaded with.
_CORRECTIONS = {"steps_offset": 1, "clip_sample": False}
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


class Scheduler:
    """One configuration of a diffusers scheduler. Unknown arguments are `InvalidConfig`."""

    kind: ClassVar[Kind]

    def __init__(self, **arguments: Any) -> None:
        known = {**self.kind.training, **self.kind.defaults}
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            raise InvalidConfig(f"{type(self).__name__} has no argument {unknown[0]!r}: it has {', '.join(known)}")
        self.config = Config({**known, **arguments}, frozenset(arguments))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={value!r}' for n, value in sorted(self._given().items()))})"

    def _given(self) -> dict[str, Any]:
        known = {**self.kind.training, **self.kind.defaults}
        return {name: self.config[name] for name in self.config.given if name in known}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """A scheduler of this class with another one's configuration, as far as it was given and means something here.

        As in diffusers: what the other only had by default is not taken over, and arguments that only other classes
        know are kept for them, with a warning if none knows them.
        """
        given = config.given if isinstance(config, Config) else set(config)
        values = {name: config[name] for name in given if not name.startswith("_")}
        known = {**cls.kind.training, **cls.kind.defaults}
        elsewhere = {name for other in SCHEDULERS.values() for name in other.kind.defaults}
        for name in sorted(set(values) - set(known)):
            if name not in elsewhere:
                logger.warning("%s: %s=%r of its configuration means nothing here", cls.__name__, name, values[name])
        scheduler = cls(**({name: value for name, value in values.items() if name in known} | changes))
        hidden = {name: value for name, value in values.items() if name not in known}
        scheduler.config = Config({**hidden, **scheduler.config}, scheduler.config.given | set(hidden))
        return scheduler

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        subfolder: str = "",
        token: str | None = None,
        use_auth_token: str | bool | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> Self:
        """The configuration that a model's folder holds in `subfolder`. Raises `ModelNotFound` or `HubError`."""
        from sfumato.weights.store import resolve

        token = token or (use_auth_token if isinstance(use_auth_token, str) else None)
        location = resolve(model, token=token, revision=revision, offline=local_files_only)
        path = location.path / subfolder / "scheduler_config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelNotFound(f"{path} can't be read: is the subfolder right? ({error.strerror})") from error
        except ValueError as error:
            raise InvalidConfig(f"{path} is not JSON: {error}") from error
        return cls.from_config(values, **changes)

    def corrected(self) -> Self:
        """As diffusers' pipelines correct a scheduler they are loaded with: `steps_offset` 1, no `clip_sample`.

        Only defaults are corrected; a value somebody chose is theirs, and refused when it comes to sampling.
        """
        changes = {n: v for n, v in _CORRECTIONS.items() if n in self.kind.defaults and n not in self.config.given}
        return type(self).from_config(self.config, **changes)

    def sampling(self, noise: NoiseSchedule, prediction: str) -> tuple[str, str | None]:
        """Our sampler and spacing for a model trained like this; `InvalidConfig` names what we'd do differently."""
        self._check_training(noise, prediction)
        for name, values in self.kind.supported.items():
            if self.config[name] not in values:
                raise self._refusal(name, f"use {' or '.join(map(repr, values))}")
        algorithm = self.config["algorithm_type"] if "algorithm_type" in self.kind.defaults else None
        sampler = self.kind.samplers.get(algorithm)
        if sampler is None:
            raise self._refusal("algorithm_type", f"use {' or '.join(map(repr, self.kind.samplers))}")
        return sampler, self._spacing()

    def _check_training(self, noise: NoiseSchedule, prediction: str) -> None:
        theirs = NoiseSchedule.from_config(self.config)
        for field in fields(NoiseSchedule):
            if field.init and getattr(theirs, field.name) != getattr(noise, field.name):
                raise self._refusal(
                    field.name,
                    f"the model was trained with {getattr(noise, field.name)!r}: give that, or start from the model's "
                    "own configuration with from_config(pipe.scheduler.config)",
                )
        if self.config["prediction_type"] != prediction:
            raise self._refusal("prediction_type", f"this model's is {prediction!r}")

    def _spacing(self) -> str | None:
        if self.kind.spacing is not None:
            return self.kind.spacing
        spacing: str = self.config["timestep_spacing"]
        if spacing not in self.kind.timestep_spacings:
            raise self._refusal("timestep_spacing", f"use {' or '.join(map(repr, self.kind.timestep_spacings))}")
        chosen = [name for name in self.kind.spaced_sigmas if self.config[name]]
        if len(chosen) > 1:
            raise InvalidConfig(f"{type(self).__name__}: only one of {' and '.join(chosen)} can be on")
        if chosen:
            if self.kind.sigmas_from_linspace and spacing != "linspace":
                raise self._refusal("timestep_spacing", f"with {chosen[0]} use 'linspace'")
            return _SPACED_SIGMAS[chosen[0]]
        if spacing == "leading" and self.config["steps_offset"] != 1:
            raise self._refusal("steps_offset", "with timestep_spacing 'leading' use 1")
        return spacing

    def _refusal(self, name: str, advice: str) -> InvalidConfig:
        return InvalidConfig(f"{type(self).__name__}: {name}={self.config[name]!r} is not supported: {advice}")


_ALL_SIGMAS = tuple(_SPACED_SIGMAS)
_LOWER_ORDER = {"lower_order_final": (True, True, False)}  # with a final σ of 0 the last step is of order 1 anyhow
_SOLVER_TYPES = ("midpoint", "heun", "logrho", "bh1", "bh2")


class PNDMScheduler(Scheduler):
    """`plms`: the original's default. The Runge-Kutta start (`skip_prk_steps=False`) is not supported, nor "linspace",
    where diffusers steps between timesteps that aren't on its list (as it does for "trailing" unless the number of
    steps divides 1000).
    """

    kind = _kind(
        "plms",
        timestep_spacing="leading",
        timestep_spacings=("leading", "trailing"),
        fixed={"skip_prk_steps": (False, True), "set_alpha_to_one": (False,)},
    )


class LMSDiscreteScheduler(Scheduler):
    """`k_lms`."""

    kind = _kind("k_lms", sigmas=_ALL_SIGMAS, sigmas_from_linspace=True)


class DDIMScheduler(Scheduler):
    """`ddim`; its η is the pipeline's `eta`. `timestep_spacing` as with `PNDMScheduler`."""

    kind = _kind(
        "ddim",
        timestep_spacing="leading",
        timestep_spacings=("leading", "trailing"),
        fixed={"clip_sample": (True, False), "set_alpha_to_one": (True, False), **_off("thresholding")},
        free=_FREE,
    )


class DDPMScheduler(Scheduler):
    """`ddpm`."""

    kind = _kind(
        "ddpm",
        timestep_spacing="leading",
        fixed={"clip_sample": (True, False), "variance_type": ("fixed_small",), **_off("thresholding")},
        free=_FREE,
    )


class EulerDiscreteScheduler(Scheduler):
    """`euler`."""

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
    """`euler_ancestral`."""

    kind = _kind("euler_ancestral")


class HeunDiscreteScheduler(Scheduler):
    """`heun`."""

    kind = _kind(
        "heun",
        fixed={"clip_sample": (False,)},
        free={"clip_sample_range": 1.0},
        training=_NARROW_BETAS,
        sigmas=_ALL_SIGMAS,
        sigmas_from_linspace=True,
    )


class KDPM2DiscreteScheduler(Scheduler):
    """`dpm2`."""

    kind = _kind("dpm2", training=_NARROW_BETAS, sigmas=_ALL_SIGMAS, sigmas_from_linspace=True)


class KDPM2AncestralDiscreteScheduler(Scheduler):
    """`dpm2_ancestral`. With `use_karras_sigmas` half the timesteps differ by a rounding: 1e-3 in the latents."""

    kind = _kind("dpm2_ancestral", training=_NARROW_BETAS, sigmas=_ALL_SIGMAS, sigmas_from_linspace=True)


class DPMSolverMultistepScheduler(Scheduler):
    """`dpmpp_2m`, or with `algorithm_type="sde-dpmsolver++"` `dpmpp_2m_sde`."""

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
    """`dpmpp_sde`. Its noise is ours, seeded from the generator, not torchsde's: the same seeds give other pictures."""

    kind = _kind(
        "dpmpp_sde",
        fixed={"noise_sampler_seed": (None,)},
        training=_NARROW_BETAS,
        sigmas=_ALL_SIGMAS,
        sigmas_from_linspace=True,
    )


class UniPCMultistepScheduler(Scheduler):
    """`unipc`."""

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
    """`deis`."""

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
    """`lcm`, on the 50 timesteps such models are distilled on."""

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
