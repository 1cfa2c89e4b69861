"""`sfumato convert`: a model from one layout to the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.choices import check_choice
from sfumato.cli.options.flags import Json, Overwrite
from sfumato.cli.terminal.output_lines import write_json, write_line
from sfumato.errors import InvalidRequest

LAYOUTS: Mapping[str, Literal["diffusers", "compvis"]] = {"diffusers": "diffusers", "compvis": "compvis"}
DTYPES = {
    "fp16": "float16",
    "float16": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp32": "float32",
    "float32": "float32",
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[kMGT]i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{unit}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for unit, base in (("b", 1000), ("ib", 1024))
}


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A model's name or path.")],
    to: Annotated[Path, typer.Argument(metavar="DST", help="A folder, or a .safetensors file.")],
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="diffusers (a folder) or compvis (a file). [dim]\\[by DST's name][/dim]",
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
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name a folder's files fp16 or bf16, and write them so.",
            autocompletion=lambda: ["fp16", "bf16"],
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split a folder's larger files, as in 2GB.")
    ] = None,
    vae: Annotated[Path | None, typer.Option(metavar="FILE", help="Put this autoencoder in: file or folder.")] = None,
    ema: Annotated[bool, typer.Option("--ema/--no-ema", help="Take a checkpoint's averaged weights.")] = True,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a model in either layout, bit for bit unless another dtype is asked for.

    sfumato convert v1-5.ckpt v1-5 --layout diffusers --variant fp16
    """
    chosen = layout or ("compvis" if to.suffix in (".safetensors", ".ckpt") else "diffusers")
    check_choice("layout", chosen, LAYOUTS)
    if dtype is not None:
        check_choice("dtype", dtype, tuple(DTYPES))
    shard_size = None if max_shard_size is None else _bytes(max_shard_size)
    from sfumato.modelfiles.conversion import convert as rewrite
    from sfumato.modelfiles.model_library import resolve

    path = resolve(source).path
    rewrite(
        path,
        to,
        layout=LAYOUTS[chosen],
        dtype=DTYPES[dtype] if dtype else None,
        vae=vae,
        ema=ema,
        variant=variant,
        max_shard_size=shard_size,
        overwrite=overwrite,
    )
    if as_json:
        write_json({"source": str(path), "destination": str(to), "layout": chosen, "dtype": dtype, "variant": variant})
    else:
        write_line(str(to))


def _bytes(text: str) -> int:
    """A size as people write it, "2GB" being 2·10⁹ bytes as the Hub's libraries have it, and "2GiB" 2³¹."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"max_shard_size {text[:40]!r} is no size: write it as 2GB or 500MB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])
