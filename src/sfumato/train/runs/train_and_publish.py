"""One training run from its first weights to what is published of it, whatever it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.progress import Cancellation, OnProgress
from sfumato.train.checkpoints import is_begun
from sfumato.train.distributed.process_group import join_world
from sfumato.train.run_folder import MODEL
from sfumato.train.runs.run_weights import first_module, weights_of_run
from sfumato.train.task import Task, TaskConfig
from sfumato.train.trainer import train


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """How far a run has come. `model` is the folder it was published to: None unless it is finished, and in processes
    other than the main one."""

    step: int
    finished: bool
    model: Path | None


def train_and_publish(
    task: Task,
    config: TaskConfig,
    folder: Path,
    *,
    start: Callable[[], Mapping[str, Tensor]] | None,
    publish: Callable[[nn.Module, Path], None],
    device: torch.device | None,
    minutes: float | None,
    cancellation: Cancellation | None,
    on_progress: OnProgress,
) -> Trained:
    """Train, and publish the averaged weights of a run that is finished.

    `start` reads first weights by name, of the module's shapes, if the run isn't begun yet. Raises what `train` raises,
    and `Cancelled` where it is asked to stop before the first step.
    """
    if cancellation is not None:
        cancellation.check()
    module = first_module(task, start(), config.run.seed) if start is not None and not is_begun(folder) else None
    outcome = train(
        task,
        config,
        folder,
        start=module,
        device=device,
        minutes=minutes,
        cancellation=cancellation,
        on_progress=on_progress,
    )
    model = None
    if outcome.finished and join_world(device).is_main:
        # from the checkpoint, which is whole where processes have sharded the weights
        model = folder / MODEL
        publish(first_module(task, weights_of_run(folder), config.run.seed).eval(), model)
    return Trained(step=outcome.state.step, finished=outcome.finished, model=model)
