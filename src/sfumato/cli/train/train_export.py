"""`sfumato train export`: what a run has trained so far, as a folder that other programs load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.options.flags import Json
from sfumato.cli.terminal.output_lines import write_json, write_line
from sfumato.errors import InvalidConfig, ModelNotFound

if TYPE_CHECKING:
    from sfumato.train.stages import RunWeights


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A training run's folder.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to write.", show_default=False)
    ],
    vae: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another autoencoder of the same latents.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another tokenizer.", show_default=False)
    ] = None,
    sigma_rel: Annotated[
        float | None,
        typer.Option(metavar="WIDTH", help="Another average, from the run's snapshots.", show_default=False),
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="NAME", help="fp16, bf16, fp32.")] = "fp16",
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Replace the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Write a run's averaged weights: of the diffusion model a whole diffusers folder, with autoencoder and tokenizer.

    sfumato train export painter --out painter-1
    sfumato train export painter --out painter-2 --sigma-rel 0.08
    """
    import torch

    from sfumato.choices import check_choice
    from sfumato.cli.models.convert import DTYPES
    from sfumato.train.stages import read_run

    check_choice("dtype", dtype, tuple(DTYPES))
    trained = read_run(run)
    average: dict[str, float] = {}  # what there is to say of another one
    if sigma_rel is not None:
        trained, average = _averaged(trained, sigma_rel)
    write = _WRITERS[trained.kind]
    write(trained, out, vae, tokenizer, getattr(torch, DTYPES[dtype]), overwrite)
    if as_json:
        write_json({"run": str(run), "kind": trained.kind, "step": trained.step, **average, "model": str(out)})
    else:
        write_line(str(out))


def _averaged(run: RunWeights, sigma_rel: float) -> tuple[RunWeights, dict[str, float]]:
    """The run with another average of its weights, and what to say of that."""
    from sfumato.train.optim.posthoc_ema import reconstruct

    if run.kind == "autoencoder":
        raise InvalidConfig(
            f"--sigma-rel {sigma_rel}: an autoencoder's latents get unit variance as its run is finished, which those "
            f"of another average would not have; leave it out"
        )
    found = reconstruct(run.folder, sigma_rel)
    about = {"sigma_rel": sigma_rel, "profile_error": found.profile_error}
    return replace(run, step=found.step, weights=found.weights), about


def _autoencoder(
    run: RunWeights, out: Path, vae: str | None, tokenizer: str | None, dtype: Any, overwrite: bool
) -> None:
    from sfumato.cli.models.autoencoders import load_autoencoder
    from sfumato.modelfiles.publish_model import publish_autoencoder

    _refuse(vae=vae, tokenizer=tokenizer)
    publish_autoencoder(load_autoencoder(str(run.folder)), out, dtype=dtype, overwrite=overwrite)


def _diffusion(run: RunWeights, out: Path, vae: str | None, tokenizer: str | None, dtype: Any, overwrite: bool) -> None:
    from sfumato.cli.models.autoencoders import load_autoencoder
    from sfumato.cli.train.train_parts import write_card_of_run
    from sfumato.train.publish_diffusion import publish_diffusion
    from sfumato.train.run_folder import kept_autoencoder, tokenizer_folder
    from sfumato.train.tasks.diffusion_task import DiffusionTraining, trained_networks

    training = run.training
    assert isinstance(training, DiffusionTraining)
    autoencoder = kept_autoencoder(run.folder) if vae is None else load_autoencoder(vae)
    if autoencoder is None:
        raise ModelNotFound(f"{run.folder} keeps no autoencoder: give --vae MODEL")
    publish_diffusion(
        trained_networks(training, run.weights),
        training,
        autoencoder,
        tokenizer_folder(run.folder) if tokenizer is None else Path(tokenizer),
        out,
        dtype=dtype,
        overwrite=overwrite,
    )
    write_card_of_run(run.folder, out)


def _clip(run: RunWeights, out: Path, vae: str | None, tokenizer: str | None, dtype: Any, overwrite: bool) -> None:
    from sfumato.modelfiles.publish_model import publish_clip
    from sfumato.models.clip import Clip, ClipConfig
    from sfumato.prompt.tokenizer import Tokenizer
    from sfumato.train.run_folder import tokenizer_folder
    from sfumato.train.tasks.clip_task import ClipTraining

    _refuse(vae=vae)
    training = run.training
    assert isinstance(training, ClipTraining)
    folder = tokenizer_folder(run.folder) if tokenizer is None else Path(tokenizer)
    eos_id = Tokenizer.from_folder(folder).eos_id
    module = Clip(ClipConfig(text=training.text_encoder, vision=training.vision, eos_id=eos_id))
    module.load_state_dict(run.weights)
    publish_clip(module.eval(), folder, out, dtype=dtype, overwrite=overwrite)


def _refuse(**given: str | None) -> None:
    for name, value in given.items():
        if value is not None:
            raise InvalidConfig(f"--{name} {value}: what this run trains has no place for one; leave it out")


_WRITERS: Mapping[str, Callable[[RunWeights, Path, str | None, str | None, Any, bool], None]] = {
    "autoencoder": _autoencoder,
    "diffusion": _diffusion,
    "clip": _clip,
}
