"""Everything that a step changes, as named tensors: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sfumato.errors import CheckpointError
from sfumato.train.ema import Ema

_MODEL, _EMA, _OPTIMIZER = "model.", "ema.", "optimizer."


@dataclass(slots=True)
class TrainState:
    """Weights, their average, the optimiser and the number of steps done. The step is the position in the data, too."""

    module: nn.Module
    ema: Ema
    optimizer: Optimizer
    step: int = 0

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all tensors, on the CPU, that later steps don't change."""
        tensors = {_MODEL + name: tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {_EMA + name: tensor for name, tensor in self.ema.module.state_dict().items()}
        for parameter, name in self._names().items():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{_OPTIMIZER}{name}.{slot}"] = value
        return {name: _copy(tensor) for name, tensor in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Inverse of `snapshot`. `CheckpointError` where names or shapes are not this model's."""
        try:
            self.module.load_state_dict(within(tensors, _MODEL))
            self.ema.module.load_state_dict(within(tensors, _EMA))
        except RuntimeError as error:
            reason = str(error).replace("\n", " ")[:300]
            raise CheckpointError(f"the checkpoint is of another model: {reason}") from error
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
        self.step = step

    def _names(self) -> dict[nn.Parameter, str]:
        return {parameter: name for name, parameter in self.module.named_parameters()}


def averaged_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights among a checkpoint's tensors, by their names in the module."""
    return within(tensors, _EMA)


def within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _like(tensor: Tensor, parameter: nn.Parameter, slot: str) -> Tensor:
    """A slot's own memory, in its parameter's layout: the optimiser's kernels then take the same path as before."""
    if slot == "step" or tensor.shape != parameter.shape:
        return tensor.clone()
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)
