"""The learning rate of each step: a warm-up, then a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch.optim import Optimizer

from sfumato.train.run_config import OptimizerConfig, RateSchedule


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: up to the configured one during the warm-up, then its schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
    return config.learning_rate * _SCHEDULES[config.schedule](done, config)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group `rate` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]


_SCHEDULES: Mapping[RateSchedule, Callable[[float, OptimizerConfig], float]] = {
    "constant": lambda done, config: 1.0,
    "linear": lambda done, config: 1.0 - done,
    "cosine": lambda done, config: 0.5 * (1.0 + math.cos(math.pi * done)),
    "trapezoid": lambda done, config: min(1.0, (1.0 - done) / config.decay_share),
}
