"""`sfumato replay`: make a picture again from its own record and say whether it is identical."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.images.loading import Models
from sfumato.cli.options.flags import RUN_FLAGS, FlagValues, Json, images_option, model_option, output_option
from sfumato.cli.options.option_groups import with_options
from sfumato.cli.options.settings import read_settings
from sfumato.cli.terminal.output_lines import write_json, write_line
from sfumato.cli.terminal.progress_bar import tracking
from sfumato.engines.names import ENGINES, TILINGS
from sfumato.errors import InvalidRequest, ModelNotFound

if TYPE_CHECKING:
    from sfumato.pipeline.provenance import Provenance
    from sfumato.pipeline.replaying import Replay
    from sfumato.pipeline.request import Request

_NAMES = ("device", "engine", "memory", "vae_tiling", "variant", "revision", "ema", "offline")
_WHERE = tuple(flag for flag in RUN_FLAGS if flag.name in _NAMES)


@with_options(given=_WHERE)
def replay(
    given: FlagValues,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture sfumato made.")],
    init_image: Annotated[Path | None, images_option(metavar="FILE", help="The picture it started from.")] = None,
    mask: Annotated[Path | None, images_option(metavar="FILE", help="The mask it was made with.")] = None,
    model: Annotated[str | None, model_option("--model", "-m", metavar="MODEL", help="Where the model is now.")] = None,
    vae: Annotated[
        Path | None, model_option("--vae", metavar="FILE", help="Where the VAE it was made with is now.")
    ] = None,
    out: Annotated[Path | None, output_option("--out", "-o", metavar="FILE", help="Keep the new picture.")] = None,
    as_json: Json = False,
) -> None:
    """Make a picture again from its own record and compare: exit code 0 if it is identical, else 1."""
    from sfumato.cli.images.destination import destination
    from sfumato.pipeline.inputs import files_named
    from sfumato.pipeline.replaying import recorded_in, with_inputs
    from sfumato.pipeline.replaying import replay as make_again

    recorded = recorded_in(image)
    request = with_inputs(recorded.request, image.parent, init_image=init_image, mask=mask)
    request = _located(request, model, vae)
    where = destination(str(out), format=None, pictures=1, overwrite=False) if out is not None else None
    settings = read_settings(_as_recorded(recorded) | dict(given)).run()
    with tracking() as tracker:
        pipeline = Models(settings, tracker.on_progress).pipeline(request)
        if pipeline.model.device.type == "cpu":
            _use_threads(recorded.threads)
        result = make_again(image, pipeline, request, inputs=files_named([request]), on_progress=tracker.on_progress)
    kept = where.save(result.pixels, result.current) if where is not None else None
    if as_json:
        write_json(_document(image, result, kept))
    else:
        for line in _lines(image, result):
            write_line(line)
        if kept is not None:
            write_line(str(kept))
    if not result.identical:
        raise typer.Exit(1)


def _located(request: Request, model: str | None, vae: Path | None) -> Request:
    """The request with its model and VAE where they are here. A picture's record may come from anyone: by itself it
    chooses among the models that are here, and reaches neither the Hub nor a path."""
    from sfumato.modelfiles.model_library import resolve

    if model is not None:
        request = request.replace(model=model)
    else:
        try:
            resolve(request.model, installed_only=True)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error}; or say where it is now with --model") from error
    if vae is not None:
        return request.replace(vae=str(vae))
    if request.vae is not None:
        raise InvalidRequest(f"the picture was made with the VAE {request.vae}: say where it is now with --vae")
    return request


def _as_recorded(recorded: Provenance) -> dict[str, str]:
    """The flags that bring back the recorded conditions, as far as this machine can."""
    from sfumato.runtime import resolve_device

    try:
        resolve_device(recorded.device)
        device = recorded.device
    except InvalidRequest:
        device = "auto"  # the result will say that it differs
    watermark = "false" if recorded.watermark == "off" else "true"
    safety = "flag" if recorded.alteration == "none" else recorded.alteration
    engine = recorded.engine if recorded.engine in ENGINES else "auto"
    return {
        "device": device,
        "dtype": recorded.dtype,
        "engine": engine,
        "vae_tiling": recorded.vae_tiling if recorded.vae_tiling in TILINGS else "auto",
        "safety": safety,
        "watermark": watermark,
    }


def _use_threads(threads: int) -> None:
    import os

    import torch

    torch.set_num_threads(min(threads, os.cpu_count() or 1))


def _lines(image: Path, result: Replay) -> list[str]:
    lines = [f"{image}: {_verdict(result)}"]
    lines += [f"  {name} was {then}, is {now}" for name, (then, now) in result.differences.items()]
    if not (result.identical or result.differences or result.untouched is False):
        lines.append(
            "  although engine, threads, torch, processor, model and version are the same" + _suspicion(result)
        )
    return lines


def _verdict(result: Replay) -> str:
    if result.identical:
        return "identical" + (" (by the hash of its pixels: this format is lossy)" if result.untouched is None else "")
    if result.untouched is False and result.current.pixels_sha256 == result.recorded.pixels_sha256:
        return f"the file was changed since it was made{_distance(result)}; what was made then comes out the same again"
    return f"different{_distance(result)}"


def _suspicion(result: Replay) -> str:
    return ", and the file's pixels are those that were made: its record was changed" if result.untouched else ""


def _distance(result: Replay) -> str:
    return "" if math.isinf(result.psnr) else f", PSNR {result.psnr:.1f} dB"


def _document(image: Path, result: Replay, kept: Path | None) -> dict[str, Any]:
    psnr = result.psnr
    return {
        "path": str(image),
        "identical": result.identical,
        "untouched": result.untouched,
        "psnr": psnr if math.isfinite(psnr) else "infinite",
        "differences": {name: {"then": then, "now": now} for name, (then, now) in result.differences.items()},
        "kept": str(kept) if kept else None,
    }
