"""`sfumato interpolate`: a moving picture from one prompt to another."""

from __future__ import annotations

from itertools import chain
from typing import Annotated

import typer

from sfumato.cli.images.loading import Models
from sfumato.cli.options.flags import (
    IMAGES,
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
from sfumato.cli.terminal.progress_bar import tracking

_FLAGS = tuple(flag for flag in REQUEST_FLAGS if flag.panel != IMAGES or flag.name.startswith("upscale"))
_RUN = tuple(flag for flag in RUN_FLAGS if flag.name not in ("batch_size", "deterministic"))  # frames run one by one


@with_options(given=(*_FLAGS, *_RUN))
def interpolate(
    given: FlagValues,
    first: Annotated[str, typer.Argument(metavar="PROMPT_A", help="Where it starts.")],
    last: Annotated[str, typer.Argument(metavar="PROMPT_B", help="Where it ends.")],
    frames: Annotated[int, picture_option("--frames", "-f", metavar="N", help="Pictures, both ends included.")] = 24,
    last_seed: Annotated[
        int | None, picture_option(metavar="N", help="Seed at the end. [dim]\\[the same][/dim]")
    ] = None,
    fps: Annotated[float, output_option(metavar="X", help="Frames a second.")] = 12.0,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Walk from one prompt to another, frame by frame, into a .gif, .webp or .mp4.

    sfumato interpolate "red heart" "blue heart" --frames 30 --out walk.gif
    """
    import numpy as np

    from sfumato.cli.images.destination import animation_destination
    from sfumato.pipeline.animation import check_size
    from sfumato.pipeline.prompt_interpolation import check_walk
    from sfumato.pipeline.prompt_interpolation import interpolate as walk

    settings = read_settings(given)
    start = settings.request(first)
    end = start.replace(prompt=last, seed=start.seed if last_seed is None else last_seed)
    check_walk(start, end, frames)
    settings.check_effects([start])
    settings.note_preset([start])
    run = settings.run()
    where = animation_destination(run.out if out is None else out, fps=fps, overwrite=overwrite)
    with tracking(frames) as tracker:
        pipeline = Models(run, tracker.on_progress).pipeline(start)
        start, end = pipeline.resolve(start), pipeline.resolve(end)
        check_size(where.suffix, frames, *(round((side or 0) * start.upscale) for side in (start.width, start.height)))
        made = walk(pipeline, start, end, frames, on_progress=tracker.on_progress)
        beginning = next(made)
        pixels = (np.asarray(generation.images[0]) for generation in chain([beginning], made))
        path = where.save_animation(pixels, beginning.provenance[0], f"{first} to {last}", fps=fps)
    if as_json:
        ends = {"first": start.to_dict(), "last": end.to_dict()}
        write_json({"path": str(path), "frames": frames, "fps": fps, **ends})
    else:
        write_line(str(path))
