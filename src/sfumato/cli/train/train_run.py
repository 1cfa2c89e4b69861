"""One training run from the command line: start or go on, show how far it is, stop with a checkpoint, publish."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.cli.terminal.output_lines import write_json, write_line, write_note
from sfumato.cli.train.train_progress import is_first_process, training_progress
from sfumato.errors import Cancelled

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sfumato.cli.train.train_options import RunOptions
    from sfumato.progress import Cancellation
    from sfumato.train.task import Task, TaskConfig
    from sfumato.train.trainer import Outcome


def conduct(
    task: Task,
    config: TaskConfig,
    options: RunOptions,
    cancellation: Cancellation,
    *,
    again: str,
    start: Callable[[], Mapping[str, Tensor]] | None,
    publish: Callable[[nn.Module], Path],
) -> None:
    """Train, and say what came of it. `again` is the command that goes on with it; `start` reads first
    weights, if the run isn't begun yet; `publish` writes the
    averaged ones of a run that is finished and gives the folder.

    Raises `Cancelled`, which says how to go on, when Ctrl-C stopped it, and what `train` raises.
    """
    from sfumato.runtime import resolve_device
    from sfumato.train.checkpoints import Checkpoints
    from sfumato.train.stages import first_module, weights_of_run
    from sfumato.train.trainer import CHECKPOINTS, train

    begun = Checkpoints(options.out / CHECKPOINTS, keep=1).any()
    module = first_module(task, start(), config.run.seed) if start is not None and not begun else None
    with training_progress() as on_progress:
        outcome = train(
            task,
            config,
            options.out,
            start=module,
            device=resolve_device(options.device),
            minutes=options.minutes,
            cancellation=cancellation,
            on_progress=on_progress,
        )
    if not is_first_process():
        return
    where = f"after step {outcome.state.step} of {config.run.steps}"
    if not outcome.finished and cancellation.requested:
        raise Cancelled(f"stopped {where}, with a checkpoint; go on with: {again}")
    model = None
    if outcome.finished:  # from the checkpoint, which is whole where processes have cut the weights up between them
        model = publish(first_module(task, weights_of_run(options.out), config.run.seed).eval())
    if model is None:
        write_note(f"the time is over {where}, with a checkpoint; go on with: {again}")
    _write_outcome(outcome, config, options, model, again)


def _write_outcome(outcome: Outcome, config: TaskConfig, options: RunOptions, model: Path | None, again: str) -> None:
    from sfumato.train.metrics import last_metrics

    if not options.as_json:
        write_line(str(options.out if model is None else model))
        return
    write_json(
        {
            "run": str(options.out),
            "step": outcome.state.step,
            "steps": config.run.steps,
            "finished": outcome.finished,
            "model": None if model is None else str(model),
            "again": None if outcome.finished else again,
            "last": last_metrics(options.out),
        }
    )
