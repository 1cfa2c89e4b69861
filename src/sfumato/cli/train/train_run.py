"""One training run from the command line: show how far it is, stop with a checkpoint, say what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.terminal.output_lines import write_json, write_line, write_note
from sfumato.cli.train.train_options import needed_data
from sfumato.cli.train.train_progress import is_first_process, training_progress
from sfumato.errors import Cancelled

if TYPE_CHECKING:
    from sfumato.cli.train.train_options import RunOptions


def train_and_tell(kind: str, training: Any, options: RunOptions, parts: Mapping[str, str | None]) -> None:
    """Train, and say what came of it; `parts` are what the run is begun with, by the names of models or runs.

    Raises `Cancelled`, which says how to go on, when Ctrl-C stopped it, and what the kind's `train` raises.
    """
    import torch

    from sfumato.progress import Cancellation
    from sfumato.runtime import resolve_device
    from sfumato.train.kinds import KINDS
    from sfumato.train.logs.metrics_log import last_metrics
    from sfumato.train.trainer import stopping_on_signals

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    cancellation, data = Cancellation(), needed_data(options.data)
    with stopping_on_signals(cancellation), training_progress() as on_progress:
        trained = KINDS[kind].train(
            training,
            data,
            options.out,
            device=resolve_device(options.device),
            minutes=options.minutes,
            cancellation=cancellation,
            on_progress=on_progress,
            **parts,
        )
    if not is_first_process():
        return
    again = options.again(kind)
    where = f"after step {trained.step} of {training.run.steps}"
    if not trained.finished and cancellation.requested:
        raise Cancelled(f"stopped {where}, with a checkpoint; go on with: {again}")
    if trained.model is None:
        write_note(f"the time is over {where}, with a checkpoint; go on with: {again}")
    elif kind == "diffusion":
        write_card_of_run(options.out, trained.model)
    if not options.as_json:
        write_line(str(trained.model or options.out))
        return
    write_json(
        {
            "run": str(options.out),
            "step": trained.step,
            "steps": training.run.steps,
            "finished": trained.finished,
            "model": None if trained.model is None else str(trained.model),
            "again": None if trained.finished else again,
            "last": last_metrics(options.out),
        }
    )


def write_card_of_run(run: Path, model: Path) -> None:
    """Write README.md and card.toml of a model that a run has made: what the run knows, the rest named as unknown."""
    from sfumato.report.card.facts_of_run import facts_of_run
    from sfumato.report.card.write_card import write_card

    write_card(model, facts_of_run(run, name=run.resolve().name), overwrite=True)
