"""How a task's module is executed: its loss as one call, over several processes, with less memory, or compiled.

All of it leaves the module's names and numbers as they are; checkpoints don't know of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sfumato.errors import InvalidConfig
from sfumato.train.distributed.process_group import World
from sfumato.train.inputs.draws import Draws
from sfumato.train.run_config import Parallel, RunConfig
from sfumato.train.task import Batch, Task

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

Measured = dict[str, Tensor]


class LossModule(nn.Module):
    """A task's loss as a forward pass, which is what DDP and FSDP watch."""

    def __init__(self, task: Task, module: nn.Module) -> None:
        super().__init__()
        self.task, self.module = task, module

    def forward(self, batch: Batch, draws: Draws) -> tuple[Tensor, Measured]:
        """The task's scalar loss, and what else it measured, detached."""
        loss, measured = self.task.loss(self.module, batch, draws)
        return loss, {name: value.detach() for name, value in measured.items()}


def distributed(loss: LossModule, averages: Sequence[nn.Module], mode: Parallel, world: World) -> nn.Module:
    """Prepare `loss` to be called by all of `world`, its gradients being means over the processes.

    "ddp": a copy of everything in each process. "fsdp": weights, their averages, gradients and the optimiser's state
    are sharded among them (FSDP2), each block of the network being gathered while it computes.
    """
    return _MODES[mode](loss, averages, world) if world.size > 1 else loss


def _ddp(loss: LossModule, averages: Sequence[nn.Module], world: World) -> nn.Module:
    devices = [world.device] if world.device.type == "cuda" else None
    sparse = any(group.may_lack_gradient for group in loss.task.groups(loss.module))
    return DistributedDataParallel(loss, device_ids=devices, find_unused_parameters=sparse)


def _fsdp(loss: LossModule, averages: Sequence[nn.Module], world: World) -> nn.Module:
    # torch.distributed.tensor takes seconds to import
    from torch.distributed.fsdp import fully_shard

    for name, parameter in loss.module.named_parameters():
        if parameter.dim() == 0:
            raise InvalidConfig(f"run.parallel = 'fsdp' can't cut up the single number {name}: use 'ddp'")
    mesh = world.mesh()
    for root in (loss, *averages):
        for block in _outermost_blocks(root):
            fully_shard(block, mesh=mesh)
        fully_shard(root, mesh=mesh)
    return loss


_MODES: Mapping[Parallel, Callable[[LossModule, Sequence[nn.Module], World], nn.Module]] = {"ddp": _ddp, "fsdp": _fsdp}


@contextlib.contextmanager
def gradients_exchanged(loss: nn.Module, last: bool) -> Iterator[None]:
    """Decide whether the backward pass in this block ends with the processes exchanging their gradients: only the last
    of those that make one step has to."""
    if isinstance(loss, DistributedDataParallel) and not last:
        with loss.no_sync():
            yield
        return
    if _shards(loss):
        loss.set_requires_gradient_sync(last)
    yield


def _shards(module: nn.Module) -> TypeGuard[FSDPModule]:
    return hasattr(module, "set_requires_gradient_sync")


def prepare(module: nn.Module, config: RunConfig) -> None:
    """Give `module` what `config` says of memory and compilation, in place, before it is distributed."""
    if config.checkpoint_activations:
        for block in _innermost_blocks(module):
            _recompute(block)
    if config.compile:
        # what is called is compiled, be it the module, its networks or their parts; the rest costs nothing
        networks = list(module.children())
        for called in (module, *networks, *(part for network in networks for part in network.children())):
            called.compile()


def _outermost_blocks(module: nn.Module) -> list[nn.Module]:
    """The members of module lists, such as a UNet's levels, without those inside others."""
    found: list[nn.Module] = []
    for child in module.children():
        found += list(child) if isinstance(child, nn.ModuleList) else _outermost_blocks(child)
    return found


def _innermost_blocks(module: nn.Module) -> list[nn.Module]:
    """The members of module lists that have no such members: residual, attention and transformer blocks."""
    found: list[nn.Module] = []
    for block in _outermost_blocks(module):
        within = _innermost_blocks(block)
        found += within or [block]
    return found


def _recompute(block: nn.Module) -> None:
    """Forget the block's intermediate results, and compute them again in the backward pass (Chen et al. 2016)."""
    forward = block.forward

    def recomputed(*inputs: object) -> object:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False)

    block.forward = recomputed
