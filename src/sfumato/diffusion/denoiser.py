"""From a model's answer at (x_in, t) to `denoise(x, sigma) -> x0`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from sfumato.choices import check_choice
from sfumato.diffusion.integration import Denoise

Predict = Callable[[Tensor, float, float], Tensor]
"""`predict(x_in, t, sigma)`: the model's raw answer for x_in = x / √(1 + σ²), unit variance, at timestep t. Both
(B, C, h, w)."""


def _from_epsilon(x: Tensor, answer: Tensor, sigma: float) -> Tensor:
    """x0 = x − σ·ε (Ho et al. 2020, eq. 15, in σ-space)."""
    return x - sigma * answer


def _from_velocity(x: Tensor, answer: Tensor, sigma: float) -> Tensor:
    """x0 = x / (1 + σ²) − v·σ / √(1 + σ²) (Salimans & Ho 2022, App. D, in σ-space)."""
    return x / (1.0 + sigma**2) - answer * (sigma / math.sqrt(1.0 + sigma**2))


def _from_sample(x: Tensor, answer: Tensor, sigma: float) -> Tensor:
    """The model answers x0 itself."""
    return answer


PREDICTIONS: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "epsilon": _from_epsilon,
    "v_prediction": _from_velocity,
    "sample": _from_sample,
}
"""`prediction_type` of diffusers' scheduler configuration → x0 from (x, answer, σ)."""


def denoiser(predict: Predict, time: Callable[[float], float], prediction: str = "epsilon") -> Denoise:
    """`denoise(x, sigma)` from a model. `time` gives the timestep to show at a σ (`Schedule.times()`).

    Raises `InvalidRequest` for an unknown prediction type.
    """
    check_choice("prediction_type", prediction, PREDICTIONS)
    to_x0 = PREDICTIONS[prediction]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        """Estimate x0 from x, both (B, C, h, w)."""
        answer = predict(x / math.sqrt(1.0 + sigma**2), time(sigma), sigma)
        return to_x0(x, answer.to(x.dtype), sigma)

    return denoise


def consistency(
    denoise: Denoise, time: Callable[[float], float], *, sigma_data: float = 0.5, timestep_scaling: float = 10.0
) -> Denoise:
    """A latent consistency model's function: x0 with the boundary condition that it returns its input at t = 0.

    Luo et al. 2023, eq. 9: c_skip·x_in + c_out·x0, x_in of unit variance, with diffusers' constants.
    """

    def boundary(x: Tensor, sigma: float) -> Tensor:
        """Estimate x0 from x, both (B, C, h, w), and give x_in back at t = 0."""
        t = time(sigma) * timestep_scaling
        skip, out = sigma_data**2 / (t**2 + sigma_data**2), t / math.hypot(t, sigma_data)
        return out * denoise(x, sigma) + (skip / math.sqrt(1.0 + sigma**2)) * x

    return boundary
