"""Everything that a step changes, as named tensors: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sfumato.errors import CheckpointError
from sfumato.train.distributed.sharded_tensors import gather, is_sharded, shard_like
from sfumato.train.optim.ema import Ema, PowerEma
from sfumato.train.optim.loss_scaler import LossScaler

_MODEL, _EMA, _OPTIMIZER, _TALLY = "model.", "ema.", "optimizer.", "tally."


@dataclass(slots=True)
class TrainState:
    """Weights, their averages, the optimiser and the number of steps done. The step is the position in the data, too.

    `ema` is the average that is published, `others` are those beside it, `powers` those that snapshots are made of.
    `tallies` are sums over the steps since the last line of the log. With FSDP each process has its part of the
    tensors.
    """

    module: nn.Module
    ema: Ema
    optimizer: Optimizer
    step: int = 0
    others: tuple[Ema, ...] = ()
    powers: tuple[PowerEma, ...] = ()
    scaler: LossScaler = field(default_factory=lambda: LossScaler(enabled=False))
    tallies: dict[str, Tensor] = field(default_factory=dict)

    @property
    def averages(self) -> tuple[Ema, ...]:
        return (self.ema, *self.others)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, of any shape, as they are."""
        tensors = {_MODEL + name: tensor.detach() for name, tensor in self.module.state_dict().items()}
        for prefix, ema in self._prefixes().items():
            tensors |= {prefix + name: tensor for name, tensor in ema.module.state_dict().items()}
        for parameter, name in self._names().items():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{_OPTIMIZER}{name}.{slot}"] = torch.as_tensor(value)  # bitsandbytes counts steps in an int
        tensors |= {_TALLY + name: tensor for name, tensor in self.tallies.items()}
        return tensors | self.scaler.tensors()

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all tensors, of any shape, whole and on the CPU, that later steps don't change. With FSDP all
        processes must ask."""
        return {name: gather(tensor).to("cpu", copy=True) for name, tensor in self.tensors().items()}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take the state from tensors of any shape, the inverse of `snapshot`. Raises `CheckpointError` where names or
        shapes are not this model's."""
        _fill(self.module, within(tensors, _MODEL))
        for prefix, ema in self._prefixes().items():
            _fill(ema.module, within(tensors, prefix))
        slots: dict[str, dict[str, Tensor]] = {}
        for name, tensor in within(tensors, _OPTIMIZER).items():
            parameter_name, _, slot = name.rpartition(".")
            slots.setdefault(parameter_name, {})[slot] = tensor
        self.optimizer.state.clear()
        for parameter, name in self._names().items():
            if name in slots:
                self.optimizer.state[parameter] = {
                    slot: _like(tensor, parameter, slot) for slot, tensor in slots[name].items()
                }
        self.tallies = {name: tensor.clone() for name, tensor in within(tensors, _TALLY).items()}
        self.scaler.restore(tensors)
        self.step = step

    def _names(self) -> dict[nn.Parameter, str]:
        return {parameter: name for name, parameter in self.module.named_parameters()}

    def _prefixes(self) -> dict[str, Ema | PowerEma]:
        others = {_prefix(ema.decay): ema for ema in self.others}
        return {_EMA: self.ema, **others, **{power_prefix(power.sigma_rel): power for power in self.powers}}


def averaged_weights(tensors: Mapping[str, Tensor], decay: float | None = None) -> dict[str, Tensor]:
    """The averaged weights among a checkpoint's tensors, of any shape, by their names in the module: those that are
    published, or those of one of the run's `ema_decays`."""
    return within(tensors, _EMA if decay is None else _prefix(decay))


def within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors, of any shapes, whose names begin with `prefix`, by the rest of their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _prefix(decay: float) -> str:
    return f"ema_{decay}."


def power_prefix(sigma_rel: float) -> str:
    """What the names of a power average's tensors begin with, in checkpoints and snapshots."""
    return f"sigma_rel_{sigma_rel}."


@torch.no_grad()
def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys()) or [name for name in own if own[name].shape != tensors[name].shape]
    if wrong:
        reason = "is missing in one of them" if wrong[0] not in own or wrong[0] not in tensors else "has another shape"
        raise CheckpointError(f"the checkpoint is of another model: {wrong[0]} {reason}")
    for name, tensor in own.items():
        tensor.copy_(shard_like(tensors[name], tensor))


def _like(tensor: Tensor, parameter: nn.Parameter, slot: str) -> Any:
    """A slot's own memory, in its parameter's layout: the optimiser's kernels then take the same path as before."""
    if tensor.dim() == 0 and not tensor.is_floating_point():
        return int(tensor)  # bitsandbytes' step
    if tensor.shape != parameter.shape or slot == "step":
        return tensor.to(parameter.device, copy=True)
    if is_sharded(parameter):
        return shard_like(tensor, parameter).clone()
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
