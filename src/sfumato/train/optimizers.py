"""Optimisers by name, parameter groups, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sfumato.train.config import OptimizerConfig, RateSchedule


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that are clipped together and learn at `rate_scale` times the configured rate."""

    name: str
    parameters: Sequence[nn.Parameter]
    rate_scale: float = 1.0


def build_optimizer(config: OptimizerConfig, groups: Sequence[ParameterGroup]) -> Optimizer:
    """The configured optimiser over `groups`; `set_rate` decides each step's rate."""
    entries: list[dict[str, Any]] = [
        {"params": list(group.parameters), "rate_scale": group.rate_scale} for group in groups
    ]
    return _OPTIMIZERS[config.kind](entries, config)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group `rate` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: up to the configured one during the warm-up, then its schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
    return config.learning_rate * _SCHEDULES[config.schedule](done)


_SCHEDULES: Mapping[RateSchedule, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _adam(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    return torch.optim.Adam(
        groups,
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


_OPTIMIZERS: Mapping[str, Callable[[list[dict[str, Any]], OptimizerConfig], Optimizer]] = {
    "adamw": _adamw,
    "adam": _adam,
}
