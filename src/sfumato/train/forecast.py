"""What a run will take before it is begun: parameters, memory, time. Nothing of it is trained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.nn.empty import empty_modules
from sfumato.train.inputs.draws import Draws
from sfumato.train.optim.optimizer_step import DTYPES
from sfumato.train.optim.optimizers import build_optimizer
from sfumato.train.run_config import RunConfig
from sfumato.train.task import Batch, Task, first_weights

_WARM_UP, _TIMED = 1, 3  # steps


class NoData:
    """What stands in the place of a data set, of which a forecast needs none."""

    def __len__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a forecast asked for the data's {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A task, its run, and one micro-batch of the shapes it trains on."""

    task: Task
    run: RunConfig
    batch: Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on each device of a run that isn't sharded. `activations` is what the forward pass keeps for the backward
    pass of one micro-batch, counted tensor by tensor; kernels need some more while they run."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Parameters by part, how many of all of them learn, samples to be seen, and memory."""

    parameters: Mapping[str, int]
    learning: int
    samples: int
    memory: Memory


def forecast(plan: Plan) -> Forecast:
    """Forecast a plan from its micro-batch's shapes, on torch's `meta` device, without numbers or their memory."""
    task, run = plan.task, plan.run
    with empty_modules():
        module = task.build()
    learning = [parameter for group in task.groups(module) for parameter in group.parameters]
    kept = _kept_for_backward(plan, module)
    size = {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}
    alone = sum(p.numel() for p in module.parameters(recurse=False))
    size |= {"other": alone} if alone else {}
    weights = sum(_bytes(tensor) for tensor in module.state_dict().values())
    gradients = sum(_bytes(parameter) for parameter in learning)
    memory = Memory(
        weights=weights,
        gradients=gradients,
        optimizer=2 * gradients,  # Adam's averages of the gradient and of its square
        average=weights * (1 + len(run.ema_decays) + len(run.ema_sigma_rels)),
        activations=kept,
    )
    return Forecast(
        parameters=size,
        learning=sum(parameter.numel() for parameter in learning),
        samples=run.steps * run.batch,
        memory=memory,
    )


def measured_rate(plan: Plan, device: torch.device) -> float:
    """Measure samples a second of a few real optimiser steps on the micro-batch; preparing samples is not in it."""
    task, run = plan.task, plan.run
    module = first_weights(task, run.seed).to(device).train()
    optimizer = build_optimizer(run.optimizer, task.groups(module), module)
    on_device = {name: tensor.to(device) for name, tensor in plan.batch.items()}
    count = run.batch // run.accumulate
    started = 0.0
    for step in range(_WARM_UP + _TIMED):
        if step == _WARM_UP:
            _wait(device)
            started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, DTYPES[run.precision], enabled=run.precision != "float32"):
            loss, _ = task.loss(module, on_device, Draws(run.seed, step, range(count)))
        torch.autograd.backward(loss)
        optimizer.step()
    _wait(device)
    return _TIMED * count / (time.perf_counter() - started)


def _kept_for_backward(plan: Plan, module: nn.Module) -> int:
    """Bytes that autograd holds on to, each piece of memory once, without the parameters'."""
    run = plan.run
    own = {id(storage): storage for storage in (p.untyped_storage() for p in module.parameters())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in own and tensor.device.type == "meta":
            kept[id(storage)] = storage  # holding it keeps its id from being given away
        return tensor

    on_meta = {name: tensor.to("meta") for name, tensor in plan.batch.items()}
    draws = Draws(run.seed, 0, range(run.batch // run.accumulate))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        plan.task.loss(module, on_meta, draws)
    total = sum(storage.nbytes() for storage in kept.values())
    return total // 2 if run.precision != "float32" else total  # about: norms and losses stay float32


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
