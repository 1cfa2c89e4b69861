"""`sfumato grid`: one prompt under changing settings, as one labelled sheet."""

from __future__ import annotations

from typing import Annotated

import typer

from sfumato.cli.images.generate import generations, shortened
from sfumato.cli.images.loading import Models
from sfumato.cli.options.flags import REQUEST_FLAGS, RUN_FLAGS, FlagValues, Json, Out, Overwrite, picture_option
from sfumato.cli.options.option_groups import with_options
from sfumato.cli.options.settings import read_settings
from sfumato.cli.terminal.output_lines import write_json, write_line
from sfumato.cli.terminal.progress_bar import tracking


@with_options(given=(*REQUEST_FLAGS, *RUN_FLAGS))
def grid(
    given: FlagValues,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to paint.")],
    x: Annotated[str, picture_option("--x", metavar="FIELD=A,B,…", help="What changes from left to right.")],
    y: Annotated[str | None, picture_option("--y", metavar="FIELD=A,B,…", help="What changes downwards.")] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare settings on one labelled sheet.

    sfumato grid "cat face" --x sampler=plms,euler,heun --y guidance_scale=2,5,8
    """
    import numpy as np

    from sfumato.cli.images.destination import destination
    from sfumato.pipeline.setting_grid import grid_requests, grid_sheet, parse_axis, sheet_provenance

    settings = read_settings(given)
    across, down = parse_axis(x), parse_axis(y) if y is not None else None
    rows = grid_requests(settings.request(prompt), across, down)
    settings.check_effects([request for row in rows for request in row])
    settings.note_preset([request for row in rows for request in row])
    run = settings.run()
    where = destination(
        run.out if out is None else out,
        format=None,
        preferred=settings.values.get("format"),
        pictures=1,
        overwrite=overwrite,
    )
    # In the order of their models, so that each is loaded once.
    cells = sorted(
        (request.model, request.vae or "", i, j) for i, row in enumerate(rows) for j, request in enumerate(row)
    )
    places = [(i, j) for _, _, i, j in cells]
    with tracking(len(places)) as tracker:
        made = generations([rows[i][j] for i, j in places], Models(run, tracker.on_progress), tracker)
        pictures = [
            (np.asarray(image), record)
            for generation in made
            for image, record in zip(generation.images, generation.provenance, strict=True)
        ]
    finished = dict(zip(places, pictures, strict=True))
    sheet = grid_sheet(
        [[finished[i, j][0] for j in range(len(row))] for i, row in enumerate(rows)],
        across,
        down,
        title=shortened(prompt),
    )
    path = where.save_sheet(sheet, sheet_provenance(finished[0, 0][1], sheet), alone=True)
    if as_json:
        write_json(
            {
                "sheet": str(path),
                "rows": [[finished[i, j][1].request.to_dict() for j in range(len(row))] for i, row in enumerate(rows)],
            }
        )
    else:
        write_line(str(path))
