"""`sfumato generate`: prompts in, picture files out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.images.loading import Models
from sfumato.cli.images.prompts import requests_for
from sfumato.cli.options.flags import (
    REQUEST_FLAGS,
    RUN_FLAGS,
    FlagValues,
    Json,
    Out,
    Overwrite,
    output_option,
    picture_option,
)
from sfumato.cli.options.option_groups import with_options
from sfumato.cli.options.settings import read_settings
from sfumato.cli.terminal.output_lines import write_json, write_line
from sfumato.cli.terminal.progress_bar import Tracker, tracking
from sfumato.diffusion.sampler_info import SAMPLERS
from sfumato.pipeline.request import Request, counted

if TYPE_CHECKING:
    from sfumato.cli.images.destination import Destination
    from sfumato.pictures.pixels import Pixels
    from sfumato.pipeline.generation import Generation
    from sfumato.pipeline.provenance import Provenance

MAX_LABEL = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A picture that is in its file, and how often the UNet was asked for it."""

    pixels: Pixels
    provenance: Provenance
    path: Path
    model_calls: int


@with_options(given=(*REQUEST_FLAGS, *RUN_FLAGS))
def generate(
    given: FlagValues,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to paint.")] = None,
    count: Annotated[int, picture_option("--count", "-c", metavar="N", help="Pictures of each prompt.")] = 1,
    prompts_file: Annotated[
        Path | None,
        picture_option(metavar="FILE", help="More prompts, one a line (- is stdin); .jsonl: request fields a line."),
    ] = None,
    out: Out = None,
    picture_format: Annotated[
        str | None, output_option("--format", metavar="NAME", help="png, jpg, webp, avif. [dim]\\[png][/dim]")
    ] = None,
    overwrite: Overwrite = False,
    sheet: Annotated[
        bool, output_option("--sheet", metavar="", help="One more picture with all of them, labelled.")
    ] = False,
    show: Annotated[
        bool | None,
        output_option("--show/--no-show", metavar="", help="Draw them in the terminal. [dim]\\[if it is one][/dim]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make pictures from prompts.

    sfumato generate "a red heart" --seed 7 --count 4
    """
    from sfumato.cli.images.destination import destination
    from sfumato.cli.terminal.shown_pictures import show as draw
    from sfumato.cli.terminal.shown_pictures import wanted

    settings = read_settings(given)
    requests = counted(requests_for(prompts or (), prompts_file, settings), count)
    settings.check_effects(requests)
    settings.note_preset(requests)
    run = settings.run()
    where = destination(
        run.out if out is None else out,
        format=picture_format,
        preferred=settings.values.get("format"),
        pictures=len(requests),
        overwrite=overwrite,
        sheet=sheet,
    )
    made: list[Made] = []
    timings: dict[str, float] = {}
    with tracking(len(requests)) as tracker:
        for generation in generations(requests, Models(run, tracker.on_progress), tracker):
            for picture in _saved(generation, where):
                made.append(picture)
                if not as_json:
                    tracker.write_line(str(picture.path))
                    if not SAMPLERS[picture.provenance.request.sampler].takes_steps:  # nobody else can tell its work
                        sys.stderr.write(f"{picture.path.name}: {picture.model_calls} UNet calls\n")
            timings = {name: timings.get(name, 0.0) + took for name, took in generation.timings.items()}
        sheet_path = _sheet(made, where) if sheet else None
    if sheet_path is not None and not as_json:
        write_line(str(sheet_path))
    if as_json:
        write_json(_document(made, sheet_path, timings))
    if wanted(show) and not (as_json and show is None):
        draw([picture.pixels for picture in made], _labels([picture.provenance for picture in made]))


def generations(requests: Sequence[Request], models: Models, tracker: Tracker) -> Iterator[Generation]:
    """Make the pictures, as many at a time as run together, so that each is handed out when it is finished.

    All are checked before the first is made.
    """
    from sfumato.pipeline.inputs import files_named
    from sfumato.pipeline.planning import batch_key

    models.check(requests)
    for _, group in groupby(requests, key=batch_key):
        waiting = iter(group)
        while batch := list(islice(waiting, 1)):
            pipeline = models.pipeline(batch[0])
            batch += islice(waiting, pipeline.batch_size - 1)
            tracker.begin(len(batch))
            yield pipeline.generate(batch, inputs=files_named(batch), on_progress=tracker.on_progress)
            tracker.done(len(batch))


def _saved(generation: Generation, where: Destination) -> Iterator[Made]:
    import numpy as np

    for image, record, calls in zip(generation.images, generation.provenance, generation.model_calls, strict=True):
        pixels = np.asarray(image)
        yield Made(pixels=pixels, provenance=record, path=where.save(pixels, record), model_calls=calls)


def _sheet(made: Sequence[Made], where: Destination) -> Path:
    from sfumato.pipeline.setting_grid import captioned, sheet_provenance

    records = [picture.provenance for picture in made]
    pixels = captioned([picture.pixels for picture in made], _labels(records))
    return where.save_sheet(pixels, sheet_provenance(records[0], pixels))


def shortened(prompt: str) -> str:
    """A prompt as a label: a book of one would fill the sheet."""
    return prompt if len(prompt) <= MAX_LABEL else prompt[: MAX_LABEL - 1] + "…"


def _labels(records: Sequence[Provenance]) -> list[str]:
    """What tells the pictures apart: their prompts, their seeds, or both."""
    requests = [provenance.request for provenance in records]
    several_prompts = len({request.prompt for request in requests}) > 1
    several_seeds = len({request.seed for request in requests}) > 1
    return [
        ", ".join(
            [shortened(request.prompt)] * (several_prompts or not several_seeds)
            + [f"seed {request.seed}"] * several_seeds
        )
        for request in requests
    ]


def _document(made: Sequence[Made], sheet: Path | None, timings: dict[str, float]) -> dict[str, Any]:
    return {
        "pictures": [
            {"path": str(picture.path), **json.loads(picture.provenance.to_json()), "model_calls": picture.model_calls}
            for picture in made
        ],
        "sheet": str(sheet) if sheet else None,
        "seconds": {name: round(took, 3) for name, took in timings.items()},
    }
