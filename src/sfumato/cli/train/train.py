"""`sfumato train`: from pictures with captions to a model, on one machine or, under torchrun, on many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.options.option_groups import with_options
from sfumato.cli.train.train_export import export
from sfumato.cli.train.train_options import (
    ConfigFile,
    DryRunOptions,
    PrintConfig,
    RunOptions,
    Start,
    TokenizerOf,
    chosen_preset,
    given_config,
    run_option,
    write_config,
)
from sfumato.cli.train.train_recipe import recipe

train = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@train.callback()
def about_train() -> None:
    """Train the autoencoder, the diffusion model, or the retriever that judges it."""


@train.command()
@with_options(options=RunOptions, planned=DryRunOptions)
def autoencoder(
    options: RunOptions,
    planned: DryRunOptions,
    config: ConfigFile = None,
    start: Start = None,
    print_config: PrintConfig = None,
) -> None:
    """Train an autoencoder: pictures to latents and back.

    sfumato train autoencoder autoencoder.toml --data pictures --out autoencoder
    """
    _train("autoencoder", options, planned, config, print_config, start=start)


@train.command()
@with_options(options=RunOptions, planned=DryRunOptions)
def diffusion(
    options: RunOptions,
    planned: DryRunOptions,
    config: ConfigFile = None,
    autoencoder: Annotated[
        str | None,
        run_option(
            "--autoencoder", "-a", metavar="MODEL", help="A model, a vae folder or file, or a run of train autoencoder."
        ),
    ] = None,
    text_encoder: Annotated[
        str | None,
        run_option(
            "--text-encoder",
            metavar="MODEL",
            help="Take this model's, which must know its words already if it doesn't learn.",
        ),
    ] = None,
    tokenizer: TokenizerOf = None,
    start: Start = None,
    print_config: PrintConfig = None,
) -> None:
    """Train a diffusion model: captions to latents. FOLDER may also hold what `sfumato data encode` wrote.

    sfumato train diffusion diffusion.toml --data pictures --autoencoder autoencoder --out painter
    """
    parts = {"autoencoder": autoencoder, "text_encoder": text_encoder, "tokenizer": tokenizer, "start": start}
    _train("diffusion", options, planned, config, print_config, **parts)


@train.command()
@with_options(options=RunOptions, planned=DryRunOptions)
def clip(
    options: RunOptions,
    planned: DryRunOptions,
    config: ConfigFile = None,
    tokenizer: TokenizerOf = None,
    start: Start = None,
    print_config: PrintConfig = None,
) -> None:
    """Train an image-text model, to judge others by: which caption belongs to a picture?

    sfumato train clip retriever.toml --data emoji --tokenizer pocket --out retriever
    """
    _train("clip", options, planned, config, print_config, tokenizer=tokenizer, start=start)


def _train(
    kind: str,
    options: RunOptions,
    planned: DryRunOptions,
    config: Path | None,
    print_config: str | None,
    **parts: str | None,
) -> None:
    """Print a config, forecast a run or conduct it, as the options say; `parts` are what the run is begun with."""
    from sfumato.train.kinds import KINDS

    if print_config is not None:
        from sfumato.pocket.training.retriever import RETRIEVER

        presets = {**KINDS[kind].starting_configs, **({"retriever": RETRIEVER} if kind == "clip" else {})}
        write_config(chosen_preset(presets, print_config))
        return
    training = given_config(KINDS[kind].config, config, options.out, kind)
    if planned.dry_run:
        from sfumato.cli.train.train_dry_run import write_forecast

        plan = KINDS[kind].plan(training, options.out, parts.get("tokenizer"), parts["start"])
        write_forecast(plan, planned, options)
        return
    from sfumato.cli.train.train_run import train_and_tell

    train_and_tell(kind, training, options, parts)


train.command()(recipe)
train.command()(export)
