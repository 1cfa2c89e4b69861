"""The training process: ᾱ and σ for each timestep. Needs no torch."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from sfumato.errors import InvalidConfig

MAX_TIMESTEPS = 10_000  # every published model has 1000

_FLOOR = 2.0**-24
"""Stands for ᾱ = 0 at the end of a zero-terminal-SNR schedule, whose σ would be infinite (as in diffusers)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """The training process: β for each timestep, and what follows from it, in float64.

    Fields carry the names and defaults of diffusers' `scheduler_config.json` as Stable Diffusion v1 fills them. Wrong
    values raise `InvalidConfig`.
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
        try:
            self._derive()
        except InvalidConfig:
            raise
        except (ArithmeticError, ValueError) as error:
            raise InvalidConfig(
                f"the noise schedule from beta_start {self.beta_start} to beta_end {self.beta_end} over "
                f"{self.num_train_timesteps} timesteps leaves no signal, or adds no noise: {error}"
            ) from error

    def _derive(self) -> None:
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
        if self.num_train_timesteps > MAX_TIMESTEPS:
            raise InvalidConfig(
                f"num_train_timesteps {str(self.num_train_timesteps)[:40]} must be at most {MAX_TIMESTEPS}"
            )
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
                num_train_timesteps=_typed(config, "num_train_timesteps", (int,), 1000),
                beta_start=float(_typed(config, "beta_start", (int, float), 0.0001)),
                beta_end=float(_typed(config, "beta_end", (int, float), 0.02)),
                beta_schedule=_typed(config, "beta_schedule", (str,), "linear"),
                trained_betas=None if trained is None else _betas_of(trained),
                rescale_betas_zero_snr=_typed(config, "rescale_betas_zero_snr", (bool,), False),
            )
        except (TypeError, ValueError, OverflowError) as error:
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


def _typed(config: Mapping[str, Any], name: str, kinds: tuple[type, ...], default: Any) -> Any:
    value = config.get(name, default)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InvalidConfig(f"the scheduler configuration's {name} is {str(value)[:80]!r}: it must be {wanted}")
    return value


def _betas_of(trained: Any) -> tuple[float, ...]:
    if isinstance(trained, (str, Mapping)) or not hasattr(trained, "__len__") or len(trained) > MAX_TIMESTEPS:
        raise InvalidConfig(f"trained_betas must be a list of at most {MAX_TIMESTEPS} numbers")
    return tuple(map(float, trained))


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
