"""`sfumato convert`: a model from one layout to the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.cli.options import Json, Overwrite
from sfumato.cli.terminal import write_json, write_line
from sfumato.diffusion.catalog import check_choice

LAYOUTS: Mapping[str, Literal["diffusers", "compvis"]] = {"diffusers": "diffusers", "compvis": "compvis"}
DTYPES = {
    "fp16": "float16",
    "float16": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp32": "float32",
    "float32": "float32",
}


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A model's name or path.", show_default=False)],
    to: Annotated[Path, typer.Argument(metavar="DST", help="A folder, or a .safetensors file.", show_default=False)],
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="diffusers (a folder) or compvis (a file). [dim]\\[by DST's name][/dim]",
            show_default=False,
            autocompletion=lambda: list(LAYOUTS),
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="fp16, bf16, fp32. [dim]\\[as it is][/dim]",
            autocompletion=lambda: ["fp16", "bf16", "fp32"],
        ),
    ] = None,
    vae: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put this autoencoder in: file or folder.", show_default=False),
    ] = None,
    ema: Annotated[bool, typer.Option("--ema/--no-ema", help="Take a checkpoint's averaged weights.")] = True,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a model in the other layout, without loss.

    sfumato convert v1-5.ckpt v1-5 --layout diffusers --dtype fp16
    """
    chosen = layout or ("compvis" if to.suffix in (".safetensors", ".ckpt") else "diffusers")
    check_choice("layout", chosen, LAYOUTS)
    if dtype is not None:
        check_choice("dtype", dtype, tuple(DTYPES))
    from sfumato.pipeline.convert import convert as rewrite
    from sfumato.weights.store import resolve

    path = resolve(source).path
    rewrite(
        path,
        to,
        layout=LAYOUTS[chosen],
        dtype=DTYPES[dtype] if dtype else None,
        vae=vae,
        ema=ema,
        overwrite=overwrite,
    )
    if as_json:
        write_json({"source": str(path), "destination": str(to), "layout": chosen, "dtype": dtype})
    else:
        write_line(str(to))
