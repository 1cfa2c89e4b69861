"""One configuration of a diffusers scheduler: which of our samplers and spacings it is, and what it may not ask for.

A scheduler here walks nothing: it holds a configuration, says what that is called in sfumato, and refuses what we would
do differently. The classes themselves are in `schedulers`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.errors import InvalidConfig, ModelNotFound
from sfumato.json_files import read_object

logger = logging.getLogger("sfumato")

SPACED_SIGMAS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}
# What diffusers' pipelines themselves put right, with a warning, in the scheduler they are loaded with.
_CORRECTIONS = {"steps_offset": 1, "clip_sample": False}


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
        elsewhere = {name for other in Scheduler.__subclasses__() for name in other.kind.defaults}
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
        from sfumato.modelfiles.model_library import resolve

        token = token or (use_auth_token if isinstance(use_auth_token, str) else None)
        location = resolve(model, token=token, revision=revision, offline=local_files_only)
        path = location.path / subfolder / "scheduler_config.json"
        try:
            values = read_object(path)
        except ModelNotFound as error:
            raise ModelNotFound(f"{path} can't be read: is the subfolder right?") from error
        return cls.from_config(values, **changes)

    def corrected(self) -> Self:
        """This scheduler as diffusers' pipelines correct one they are loaded with: `steps_offset` 1, no `clip_sample`.

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
            return SPACED_SIGMAS[chosen[0]]
        if spacing == "leading" and self.config["steps_offset"] != 1:
            raise self._refusal("steps_offset", "with timestep_spacing 'leading' use 1")
        return spacing

    def _refusal(self, name: str, advice: str) -> InvalidConfig:
        return InvalidConfig(f"{type(self).__name__}: {name}={self.config[name]!r} is not supported: {advice}")
