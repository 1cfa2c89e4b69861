"""Optimisers by name, over the parameter groups of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sfumato.errors import InvalidConfig
from sfumato.runtime import require
from sfumato.train.optim.muon import Muon, hidden_matrices
from sfumato.train.run_config import OptimizerConfig, OptimizerKind
from sfumato.train.task import ParameterGroup


def build_optimizer(config: OptimizerConfig, groups: Sequence[ParameterGroup], module: nn.Module) -> Optimizer:
    """The configured optimiser over `groups` of the parameters of `module`; `set_rate` decides each step's rate."""
    return _OPTIMIZERS[config.kind](groups, config, module)


Entries = list[dict[str, Any]]


def _entries(groups: Sequence[ParameterGroup]) -> Entries:
    return [{"params": list(group.parameters), "rate_scale": group.rate_scale} for group in groups]


def _adamw(groups: Sequence[ParameterGroup], config: OptimizerConfig, module: nn.Module) -> Optimizer:
    return _fused(torch.optim.AdamW, _entries(groups), config)


def _adam(groups: Sequence[ParameterGroup], config: OptimizerConfig, module: nn.Module) -> Optimizer:
    return _fused(torch.optim.Adam, _entries(groups), config)


def _fused(kind: type[torch.optim.Adam], entries: Entries, config: OptimizerConfig) -> Optimizer:
    return kind(
        entries,
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _muon(groups: Sequence[ParameterGroup], config: OptimizerConfig, module: nn.Module) -> Optimizer:
    hidden = hidden_matrices(module)
    matrices = [replace(group, parameters=[p for p in group.parameters if p in hidden]) for group in groups]
    rest = [replace(group, parameters=[p for p in group.parameters if p not in hidden]) for group in groups]
    if not any(group.parameters for group in matrices):
        raise InvalidConfig("optimizer.kind = 'muon' needs hidden matrices, and what is trained has none: use 'adamw'")
    adamw = _fused(torch.optim.AdamW, _entries([group for group in rest if group.parameters]), config)
    filled = _entries([group for group in matrices if group.parameters])
    return Muon(filled, adamw, weight_decay=config.weight_decay)


def _adamw8bit(groups: Sequence[ParameterGroup], config: OptimizerConfig, module: nn.Module) -> Optimizer:
    optimizer: Optimizer = require("bitsandbytes", extra="bitsandbytes").optim.AdamW8bit(
        _entries(groups),
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    return optimizer


_OPTIMIZERS: Mapping[OptimizerKind, Callable[[Sequence[ParameterGroup], OptimizerConfig, nn.Module], Optimizer]] = {
    "adamw": _adamw,
    "adam": _adam,
    "muon": _muon,
    "adamw8bit": _adamw8bit,
}
