"""Which timesteps training sees, and what each one's loss weighs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.errors import InvalidConfig

Weighting = Literal["none", "min_snr", "high_noise"]
Prediction = Literal["epsilon", "v_prediction"]

_CAP = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseConfig:
    """The noise of training and the weight of its levels. Wrong values raise `InvalidConfig`."""

    prediction: Annotated[Prediction, "what the UNet answers: the noise, or v"] = "epsilon"
    zero_terminal_snr: Annotated[bool, "rescale the schedule so that the last step is pure noise; needs v"] = False
    weighting: Annotated[Weighting, "none, min_snr, or high_noise for small models that must learn layout"] = "none"
    gamma: Annotated[float, "of min_snr and high_noise: the signal-to-noise ratio above which weights fall"] = 5.0
    floor: Annotated[float, "of high_noise: the least that gamma / snr counts"] = 0.15
    density: Annotated[float, "power of the weight that goes into how often a timestep is drawn; 0: all alike"] = 0.0
    stratified: Annotated[bool, "spread the timesteps of a batch evenly over their distribution"] = False
    offset: Annotated[float, "standard deviation of noise constant over a channel, added to the noise"] = 0.0
    perturbation: Annotated[float, "further noise on the UNet's input only (Ning et al. 2023)"] = 0.0

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise InvalidConfig(
                "noise.zero_terminal_snr needs noise.prediction = 'v_prediction': in pure noise, the noise is no news"
            )
        if not 0.0 <= self.density <= 1.0:
            raise InvalidConfig(f"noise.density = {self.density} must be from 0 to 1")
        if self.gamma <= 0.0:
            raise InvalidConfig(f"noise.gamma = {self.gamma} must be above 0")

    def schedule(self) -> NoiseSchedule:
        """Stable Diffusion v1's noise schedule, rescaled if so asked."""
        return NoiseSchedule(rescale_betas_zero_snr=self.zero_terminal_snr)


@dataclass(frozen=True, slots=True)
class NoiseLevels:
    """ᾱ of each timestep, its probability to be drawn (as a cumulative sum), and its loss' weight. All (T,)."""

    alphas_cumprod: Tensor
    cumulative: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> NoiseLevels:
        """These levels on `device`."""
        return NoiseLevels(self.alphas_cumprod.to(device), self.cumulative.to(device), self.weights.to(device))

    def timesteps(self, uniform: Tensor) -> Tensor:
        """Numbers (B,) in [0, 1) → timesteps (B,) with the configured density."""
        found = torch.searchsorted(self.cumulative, uniform.double(), right=True)
        return found.clamp(max=len(self.cumulative) - 1)


def noise_levels(config: NoiseConfig) -> NoiseLevels:
    """The levels of `config`.

    A weight w is split: timesteps are drawn with density ∝ w^density, and weigh w^(1 - density), scaled so that the
    expected weight is 1; the expected gradient is w's, up to a factor. Without a density the weights are as published.
    """
    alphas = torch.tensor(config.schedule().alphas_cumprod, dtype=torch.float64)
    wanted = _WEIGHTS[config.weighting](alphas / (1.0 - alphas), config)
    probabilities = wanted**config.density
    probabilities = probabilities / probabilities.sum()
    weights = wanted ** (1.0 - config.density)
    if config.density:
        weights = weights / (weights * probabilities).sum()
    return NoiseLevels(alphas.float(), probabilities.cumsum(0), weights.float())


def _none(snr: Tensor, config: NoiseConfig) -> Tensor:
    return torch.ones_like(snr)


def _min_snr(snr: Tensor, config: NoiseConfig) -> Tensor:
    """min(snr, γ) / snr for noise, / (snr + 1) for v (Hang et al. 2023, eq. 6 and appendix)."""
    return snr.clamp(max=config.gamma) / (snr if config.prediction == "epsilon" else snr + 1.0)


def _high_noise(snr: Tensor, config: NoiseConfig) -> Tensor:
    """clamp(γ / snr, floor, 1) · min((1 + snr) / snr, 25) for noise, and what that makes for v.

    An error of the noise at ratio σ shifts the picture by σ times it, so the noisy steps decide colour and layout,
    which the plain loss hardly sees.
    """
    shape = (config.gamma / snr.clamp(min=1e-12)).clamp(config.floor, 1.0)
    if config.prediction == "epsilon":
        return shape * ((1.0 + snr) / snr).clamp(max=_CAP)
    # err_eps = err_v · √ᾱ, hence the square of it, ᾱ = snr / (1 + snr)
    return shape * torch.minimum(torch.ones_like(snr), _CAP * snr / (1.0 + snr))


_WEIGHTS: Mapping[Weighting, Callable[[Tensor, NoiseConfig], Tensor]] = {
    "none": _none,
    "min_snr": _min_snr,
    "high_noise": _high_noise,
}
