"""A toy noise model, and diffusers' sampling loop around one of its schedulers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

V1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SHAPE = (2, 4, 6, 6)


def toy_model(x_in: Tensor, t: float) -> Tensor:
    """An answer that depends on the picture, not linearly, and on the timestep. Smooth, bounded slope."""
    t = float(t)
    return (0.35 + 0.6 * t / 1000) * x_in + 0.2 * torch.sin(2.0 * x_in + t / 150) + 0.05 * math.cos(t / 40)


def toy_predict(x_in: Tensor, t: float, sigma: float) -> Tensor:
    return toy_model(x_in, t)


def start_noise(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def diffusers_run(
    scheduler: Any, noise: Tensor, generator: torch.Generator | None = None, model: Any = toy_model
) -> Tensor:
    """Text to image with a diffusers scheduler whose timesteps are set, as its pipelines do it."""
    return diffusers_loop(scheduler, noise * scheduler.init_noise_sigma, scheduler.timesteps, generator, model)


def diffusers_loop(
    scheduler: Any, x: Tensor, timesteps: Tensor, generator: torch.Generator | None = None, model: Any = toy_model
) -> Tensor:
    extra = {} if generator is None else {"generator": generator}
    for t in timesteps:
        answer = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(answer, t, x, **extra).prev_sample
    return x


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference in units of the reference's standard deviation."""
    assert theirs.isfinite().all()
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().std())
