"""One step of the optimiser: losses and gradients of its micro-batches, over all processes, and what they change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidConfig, NumericalError
from sfumato.train.distributed.ddp_and_fsdp import gradients_exchanged
from sfumato.train.distributed.process_group import World
from sfumato.train.distributed.sharded_tensors import gather, local
from sfumato.train.inputs.draws import Draws
from sfumato.train.optim.learning_rate import learning_rate, set_rate
from sfumato.train.run_config import Precision, RunConfig
from sfumato.train.task import Batch, ParameterGroup
from sfumato.train.train_state import TrainState

DTYPES: Mapping[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class Stepper:
    """Takes steps with `loss`, which gives the loss of a micro-batch and what else to log."""

    loss: nn.Module
    groups: Sequence[ParameterGroup]
    state: TrainState
    config: RunConfig
    world: World

    def step(self, parts: Sequence[tuple[Batch, Draws]]) -> dict[str, float]:
        """Take one optimiser step over micro-batches; returns what to log: means over the samples of all processes.

        `NumericalError` where a loss or gradient is not finite, with the state as it was before.
        """
        config, state = self.config, self.state
        rate = learning_rate(config.optimizer, state.step, config.steps)
        set_rate(state.optimizer, rate)
        state.optimizer.zero_grad(set_to_none=True)
        buffers = [buffer.clone() for buffer in state.module.buffers()]  # the forward pass changes those of batch norms
        totals, tallies = self._gradients(parts)
        norms = {}
        for group in self.groups:
            norm = gather(nn.utils.clip_grad_norm_(group.parameters, config.clip_norm or math.inf)).detach()
            # that of a group without gradients, as a critic that rests, is on the CPU
            norms[f"gradient_{group.name}"] = norm.to(self.world.device)
        measured = {**totals, **norms}
        # one look at the device, not one for each
        values = dict(zip(measured, torch.stack(list(measured.values())).tolist(), strict=True))
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            for buffer, before in zip(state.module.buffers(), buffers, strict=True):
                buffer.copy_(before)
            if not (set(wrong) <= set(norms) and state.scaler.overflowed()):
                raise NumericalError(f"{wrong[0]} is {values[wrong[0]]}")
            values = {name: value for name, value in values.items() if name not in wrong}
        else:
            state.optimizer.step()
            state.scaler.went_well()
        state.step += 1
        if not wrong:
            for ema in state.averages:
                ema.update(state.module, state.step)
        for power in state.powers:  # also where the weights stayed: its profile is over all steps
            power.update(state.module, state.step)
        for name, tally in tallies.items():
            state.tallies[name] = state.tallies.get(name, 0.0) + tally
        if state.scaler.enabled:
            values["loss_scale"] = state.scaler.scale
        return {**values, "learning_rate": rate}

    def _gradients(self, parts: Sequence[tuple[Batch, Draws]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Fill in the gradients. Means of what was measured, and sums of what is tallied."""
        config, device = self.config, self.world.device
        totals: dict[str, Tensor] = {}
        tallies: dict[str, Tensor] = {}
        scale = self.state.scaler.scale
        for number, (batch, draws) in enumerate(parts, start=1):
            on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            with gradients_exchanged(self.loss, last=number == len(parts)), self.world.peers_watched():
                with torch.autocast(device.type, DTYPES[config.precision], enabled=config.precision != "float32"):
                    loss, measured = self.loss(on_device, draws)
                torch.autograd.backward(loss * scale / len(parts))
            for name, value in {"loss": loss.detach(), **measured}.items():
                found, share = (totals, len(parts) * self.world.size) if value.dim() == 0 else (tallies, 1)
                found[name] = found.get(name, 0.0) + value.float() / share
        if scale != 1.0:
            gradients = [local(p.grad) for group in self.groups for p in group.parameters if p.grad is not None]
            torch._foreach_mul_(gradients, 1.0 / scale)
        summed = self.world.all_reduce({**totals, **tallies})
        return {name: summed[name] for name in totals}, {name: summed[name].cpu() for name in tallies}


def check_device(config: RunConfig, device: torch.device) -> None:
    """Raise `InvalidConfig` where the device can't train in the configured precision, or hold the data set."""
    if config.resident and device.type not in ("cpu", "cuda"):
        raise InvalidConfig(f"run.resident needs a CUDA device or the CPU, not {device.type}: set it to false")
    if config.precision == "float16" and device.type != "cuda":
        raise InvalidConfig(f"run.precision = 'float16' needs a CUDA device, not {device.type}: use 'bfloat16'")
