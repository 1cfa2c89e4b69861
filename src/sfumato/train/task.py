"""What the loop needs to know of what it trains: a task, its config and its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.train.inputs.draws import Draws
from sfumato.train.run_config import RunConfig

Batch = dict[str, Tensor]
"""Named tensors whose first dimension counts the samples."""


class TaskConfig(Protocol):
    """A task's whole config: a frozen dataclass with the run's options in `run`."""

    @property
    def run(self) -> RunConfig: ...


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that are clipped together and learn at `rate_scale` times the configured rate.

    Those of a group that `may_lack_gradient` may be in no loss for some steps, as a critic's that begins later;
    processes have to look for them.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    rate_scale: float = 1.0
    may_lack_gradient: bool = False


class Task(Protocol):
    """What is trained."""

    def build(self) -> nn.Module:
        """The module with its first weights; the caller has seeded torch's global generator."""
        ...

    def groups(self, module: nn.Module) -> Sequence[ParameterGroup]:
        """The parameters that learn."""
        ...

    def load(self, draws: Draws) -> Batch:
        """The samples `draws.numbers`, on the CPU, as tensors whose first dimension counts them. Called in threads."""
        ...

    def loss(self, module: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The scalar to minimise, a mean over the batch, and what else to log: scalars, which are means too, or
        (K, 2), sums and counts of K kinds of samples, whose means since the last line of the log go into the next."""
        ...

    def validate(self, module: nn.Module, picture: Path) -> Mapping[str, float]:
        """Measure the averaged weights on held-out samples and draw them into the PNG `picture`. "score" is what
        checkpoints are compared by, lower is better."""
        ...


def first_weights(task: Task, seed: int) -> nn.Module:
    """The task's module with the random weights that `seed` decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.build()
