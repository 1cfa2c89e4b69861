"""`sfumato train recipe`: how a published model was made, as a graph of stages that can be run one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.choices import check_choice
from sfumato.cli.options.option_groups import with_options
from sfumato.cli.terminal.output_lines import literal, stdout_console, table, write_json
from sfumato.cli.train.train_options import ALL, DryRunOptions, RunOptions, run_option
from sfumato.errors import InvalidRequest

if TYPE_CHECKING:
    from sfumato.train.recipes import Stage

NAMES = ("v1-1", "v1-2", "v1-3", "v1-4", "pocket", "pocket-gpu", "pocket-gpu-again")


@with_options(options=RunOptions, planned=DryRunOptions)
def recipe(
    options: RunOptions,
    planned: DryRunOptions,
    name: Annotated[str, typer.Argument(metavar="NAME", help="v1-1 to v1-4, pocket, pocket-gpu or pocket-gpu-again.")],
    stage: Annotated[
        str | None,
        run_option(
            metavar="NAME", help="Run this one, in RUN/NAME; all: pocket's, as far as --minutes go, and RUN/model."
        ),
    ] = None,
    autoencoder: Annotated[str | None, run_option("--autoencoder", "-a", metavar="MODEL")] = None,
    text_encoder: Annotated[str | None, run_option("--text-encoder", metavar="MODEL")] = None,
    start: Annotated[
        str | None,
        run_option(
            metavar="MODEL", help="Go on from this model's folder: pocket's later stages need nothing else then."
        ),
    ] = None,
) -> None:
    """Show a recipe's stages, or run one: it starts from the averaged weights of the stage before.

    sfumato train recipe v1-4
    sfumato train recipe v1-1 --stage v1-1-256 --data laion --out runs --autoencoder v1-4 --text-encoder v1-4
    """
    check_choice("recipe", name, NAMES)
    stages = _stages(name)
    pocket = name.startswith("pocket")
    if start is not None and not (pocket and stage):
        raise InvalidRequest(f"--start {start} is for stages of pocket: give --stage, or of v1 train the one before")
    if stage is not None:
        check_choice("stage", stage, (*stages, ALL) if pocket else tuple(stages))
        if pocket and not planned.dry_run:
            from sfumato.cli.train.train_pocket import train_pocket

            train_pocket(name, stage, options, start)
        else:
            _run(stages, stage, options, planned, autoencoder, text_encoder)
    elif planned.dry_run:
        from sfumato.cli.train.train_dry_run import write_recipe_forecast

        write_recipe_forecast(name, stages, planned, options)
    elif options.as_json:
        write_json({"recipe": name, "stages": [_document(key, value) for key, value in stages.items()]})
    else:
        _write_table(stages)


def _stages(name: str) -> Mapping[str, Stage]:
    """The stages that lead to v1-N, or all of a recipe of pocket's."""
    from sfumato.pocket.training.pocket_recipes import POCKET_RECIPES
    from sfumato.train.recipes import V1, lineage

    return POCKET_RECIPES[name] if name in POCKET_RECIPES else {key: V1[key] for key in lineage(V1, name)}


def _document(name: str, stage: Stage) -> dict[str, object]:
    run = stage.training.run
    return {
        "stage": name,
        "from": stage.start,
        "steps": run.steps,
        "batch": run.batch,
        "samples": stage.samples,
        "resolution": stage.resolution,
        "data": stage.data,
    }


def _write_table(stages: Mapping[str, Stage]) -> None:
    listed = table("stage", "from", "steps", "batch", "samples", "pixels", "data")
    for name, stage in stages.items():
        run = stage.training.run
        listed.add_row(
            literal(name, "bold cyan"),
            literal(stage.start or "scratch"),
            f"{run.steps:,}",
            f"{run.batch:,}",
            f"{stage.samples:,}",
            str(stage.resolution),
            literal(stage.data),
        )
    stdout_console().print(listed)


def _run(
    stages: Mapping[str, Stage],
    name: str,
    options: RunOptions,
    planned: DryRunOptions,
    autoencoder: str | None,
    text_encoder: str | None,
) -> None:
    from sfumato.cli.train.train_dry_run import write_forecast
    from sfumato.cli.train.train_run import train_and_tell
    from sfumato.train.checkpoints import is_begun
    from sfumato.train.kinds import KINDS

    stage = stages[name]
    if planned.dry_run:
        for kind in KINDS.values():  # the stage of the words has none
            if isinstance(stage.training, kind.config):
                write_forecast(kind.plan(stage.training, options.out, None, None), planned, options)
        return
    if options.data is None:
        raise InvalidRequest(f"stage {name} is trained on {stage.data}, which is not part of this program: give --data")
    start = None if stage.start is None else options.out / stage.start
    if start is not None and not is_begun(start):
        raise InvalidRequest(
            f"stage {name} starts from {stage.start}, and {start} holds no run of it: train that first, with "
            f"--stage {stage.start}"
        )
    own = replace(options, out=options.out / name)
    before = None if start is None else str(start)
    train_and_tell(
        "diffusion", stage.training, own, {"autoencoder": autoencoder, "text_encoder": text_encoder, "start": before}
    )
