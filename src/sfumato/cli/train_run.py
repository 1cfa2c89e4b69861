"""One training run from the command line: start or go on, show how far it is, stop with a checkpoint, publish."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.cli.terminal import write_json, write_line, write_note
from sfumato.errors import Cancelled
from sfumato.progress import OnProgress, Progress, ignore

if TYPE_CHECKING:
    from rich.text import Text
    from torch import Tensor, nn

    from sfumato.cli.train_options import RunOptions
    from sfumato.progress import Cancellation
    from sfumato.train.trainer import Outcome, Task, TaskConfig

_STEP_LINE = "step %d of %d"


def is_first_process() -> bool:
    """Whether this is the only process, or the one of torchrun's that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


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
    with training_progress(config.run.batch) as on_progress:
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


@contextmanager
def training_progress(batch: int) -> Iterator[OnProgress]:
    """On a terminal a bar with images/s and the time left; elsewhere a line every so many steps."""
    with _told(steps=not sys.stderr.isatty()):
        if not sys.stderr.isatty() or not is_first_process():
            yield ignore
            return
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.progress import Task as Row
        from rich.text import Text as RichText

        class Rate(ProgressColumn):
            def render(self, task: Row) -> Text:
                return RichText("" if task.speed is None else f"{task.speed * batch:.1f} images/s")

        columns = (
            SpinnerColumn(),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            Rate(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
        )
        with Bar(
            *columns,
            console=Console(stderr=True),
            transient=True,
            speed_estimate_period=300,
            redirect_stdout=False,  # rich would send the results to stderr
        ) as bar:
            row = None

            def show(event: Progress) -> None:
                nonlocal row
                if row is None:  # what was done before this process says nothing about its speed
                    row = bar.add_task("training", total=event.steps, completed=event.step)
                bar.update(row, completed=event.step)

            yield show


@contextmanager
def _told(*, steps: bool) -> Iterator[None]:
    """What the trainer says of its run is shown meanwhile, its lines about steps only if `steps`."""
    logger = logging.getLogger("sfumato")
    level = logger.level

    def wanted(record: logging.LogRecord) -> bool:
        return steps or not str(record.msg).startswith(_STEP_LINE)

    logger.addFilter(wanted)
    logger.setLevel(min(level, logging.INFO) if is_first_process() else level)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeFilter(wanted)
