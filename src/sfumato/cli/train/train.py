"""`sfumato train`: from pictures with captions to a model, on one machine or, under torchrun, on many."""

from __future__ import annotations

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
    needed_data,
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
    from sfumato.train.starting_configs import AUTOENCODERS
    from sfumato.train.tasks.autoencoder_task import AutoencoderTraining

    if print_config is not None:
        write_config(chosen_preset(AUTOENCODERS, print_config))
        return
    training = given_config(AutoencoderTraining, config, options.out, "autoencoder")
    if planned.dry_run:
        from sfumato.cli.train.train_dry_run import write_autoencoder_forecast

        write_autoencoder_forecast(training, planned, options)
        return
    from sfumato.cli.train.train_tasks import train_autoencoder

    train_autoencoder(training, needed_data(options.data), options, start)


@train.command()
@with_options(options=RunOptions, planned=DryRunOptions)
def diffusion(
    options: RunOptions,
    planned: DryRunOptions,
    config: ConfigFile = None,
    autoencoder: Annotated[
        str | None,
        typer.Option(
            "--autoencoder",
            "-a",
            metavar="MODEL",
            help="A model, a vae folder or file, or a run of train autoencoder.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder",
            metavar="MODEL",
            help="Take this model's, which must know its words already if it doesn't learn.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    tokenizer: TokenizerOf = None,
    start: Start = None,
    print_config: PrintConfig = None,
) -> None:
    """Train a diffusion model: captions to latents. FOLDER may also hold what `sfumato data encode` wrote.

    sfumato train diffusion diffusion.toml --data pictures --autoencoder autoencoder --out painter
    """
    from sfumato.train.starting_configs import DIFFUSIONS
    from sfumato.train.tasks.diffusion_task import DiffusionTraining

    if print_config is not None:
        write_config(chosen_preset(DIFFUSIONS, print_config))
        return
    training = given_config(DiffusionTraining, config, options.out, "diffusion")
    if planned.dry_run:
        from sfumato.cli.train.train_dry_run import write_diffusion_forecast

        write_diffusion_forecast(training, planned, options)
        return
    from sfumato.cli.train.train_tasks import DiffusionParts, train_diffusion

    parts = DiffusionParts(autoencoder=autoencoder, text_encoder=text_encoder, tokenizer=tokenizer, start=start)
    train_diffusion(training, needed_data(options.data), options, parts)


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
    from sfumato.pocket.training.retriever import RETRIEVER
    from sfumato.train.starting_configs import CLIPS
    from sfumato.train.tasks.clip_task import ClipTraining

    if print_config is not None:
        write_config(chosen_preset({**CLIPS, "retriever": RETRIEVER}, print_config))
        return
    training = given_config(ClipTraining, config, options.out, "clip")
    if planned.dry_run:
        from sfumato.cli.train.train_dry_run import write_clip_forecast

        write_clip_forecast(training, planned, options, tokenizer, start)
        return
    from sfumato.cli.train.train_tasks import train_clip

    train_clip(training, needed_data(options.data), options, tokenizer, start)


train.command()(recipe)
train.command()(export)
