"""`sfumato bench --quality`: what the presets give up, as a sheet of pictures and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.terminal.output_lines import literal, stdout_console, table, write_note
from sfumato.errors import MissingExtra
from sfumato.files import user_path

if TYPE_CHECKING:
    from sfumato.report.features.network import Network

_quality = partial(typer.Option, rich_help_panel="What presets give up")
_FALLBACK = "pocket"  # random weights paint nothing to look at


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What `bench --quality` takes. `sheet` None: speed is measured, not quality."""

    sheet: Annotated[
        Path | None,
        _quality(
            "--quality",
            metavar="FILE",
            help="In place of speed: paint by every preset of --model (pocket, unless given); the sheet's file.",
        ),
    ] = None
    prompts: Annotated[
        Path | None, _quality(metavar="FILE", help="What to paint. [dim]\\[eight words pocket knows][/dim]")
    ] = None
    guidance_scale: Annotated[
        float | None,
        _quality("--guidance-scale", "-g", metavar="X", help="Of all pictures. [dim]\\[the model's][/dim]"),
    ] = None
    reference: Annotated[
        Path | None, _quality(metavar="FOLDER", help="Real pictures to compare all with. [dim]\\[exact's own][/dim]")
    ] = None
    clip: Annotated[
        Path | None, _quality(metavar="FOLDER", help="A CLIP model, for how well pictures fit their words.")
    ] = None


def show_quality(model: str, options: Quality, sheet: Path, *, overwrite: bool) -> dict[str, Any]:
    """Make the pictures, save the sheet and give the numbers. Raises before any work for what can't be read."""
    from sfumato.bench.bench_plan import RANDOM_V1
    from sfumato.cli.terminal.progress_bar import tracking
    from sfumato.pipeline.presets import PRESETS
    from sfumato.pipeline.saving import picture_suffix, save_picture
    from sfumato.report.evaluation.preset_quality import PROMPTS, generate_by_presets, measured, preset_sheet
    from sfumato.report.evaluation.prompt_list import read_prompts
    from sfumato.report.evaluation.reference import read_folder
    from sfumato.report.evaluation.run_pictures import load_for_evaluation

    path = user_path(sheet)
    picture_suffix(path.suffix)
    prompts = read_prompts(user_path(options.prompts)).texts if options.prompts else list(PROMPTS)
    networks = _networks(options.clip)
    reference = read_folder(user_path(options.reference)) if options.reference else ()
    chosen = _FALLBACK if model == RANDOM_V1 else model
    with tracking(len(prompts) * len(PRESETS)) as tracker:
        generated = generate_by_presets(
            load_for_evaluation(chosen), prompts, guidance_scale=options.guidance_scale, on_pictures=tracker.done
        )
    save_picture(preset_sheet(generated, prompts), path, overwrite=overwrite)
    found = measured(generated, prompts, networks=networks, reference=reference)
    return {"model": chosen, "prompts": len(prompts), "sheet": str(path), "presets": _plain(found)}


def write_quality(made: Mapping[str, Any]) -> None:
    """Write the numbers as a table."""
    names = list(dict.fromkeys(name for numbers in made["presets"].values() for name in numbers))
    shown = table("preset", *names, title=f"{made['model']}: {made['prompts']} pictures each, PSNR and SSIM to exact's")
    for preset, numbers in made["presets"].items():
        cells = ("∞" if name in numbers and numbers[name] is None else _number(numbers.get(name)) for name in names)
        shown.add_row(literal(preset, "bold cyan"), *map(literal, cells))
    stdout_console().print(shown)


def _networks(clip: Path | None) -> list[Network]:
    from sfumato.report.features.clip_features import ClipFeatures
    from sfumato.report.features.efficientnet_features import EfficientNetFeatures

    found: list[Network] = [ClipFeatures(user_path(clip))] if clip is not None else []
    try:
        found.append(EfficientNetFeatures())
    except MissingExtra as error:
        write_note(f"no Fréchet distance: {error}")
    return found


def _plain(found: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """JSON has no infinity: the PSNR of equal pictures is null."""
    return {
        preset: {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        for preset, numbers in found.items()
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
