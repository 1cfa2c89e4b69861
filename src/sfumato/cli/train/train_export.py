"""`sfumato train export`: what a run has trained so far, as a folder that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.options.flags import Json
from sfumato.cli.terminal.output_lines import write_json, write_line


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A training run's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to write.")],
    vae: Annotated[str | None, typer.Option(metavar="MODEL", help="Another autoencoder of the same latents.")] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="MODEL", help="Another tokenizer.")] = None,
    sigma_rel: Annotated[
        float | None, typer.Option(metavar="WIDTH", help="Another average, from the run's snapshots.")
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
    from sfumato.cli.train.train_run import write_card_of_run
    from sfumato.train.kinds import export_run, other_average, read_run

    check_choice("dtype", dtype, tuple(DTYPES))
    trained = read_run(run)
    average: dict[str, float] = {}  # what there is to say of another one
    if sigma_rel is not None:
        trained, error = other_average(trained, sigma_rel)
        average = {"sigma_rel": sigma_rel, "profile_error": error}
    numbers = getattr(torch, DTYPES[dtype])
    export_run(trained, out, vae=vae, tokenizer=tokenizer, dtype=numbers, overwrite=overwrite)
    if trained.kind == "diffusion":
        write_card_of_run(run, out)
    if as_json:
        write_json({"run": str(run), "kind": trained.kind, "step": trained.step, **average, "model": str(out)})
    else:
        write_line(str(out))
