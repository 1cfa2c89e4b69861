"""`sfumato data verify` and `sfumato data stats`: whether a data set is whole, and what is in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.models.inspect import readable
from sfumato.cli.options.flags import Json, Overwrite
from sfumato.cli.terminal.output_lines import facts, stdout_console, write_json, write_line
from sfumato.cli.terminal.progress_bar import tracking

if TYPE_CHECKING:
    from sfumato.data.moments import Moments
    from sfumato.data.samples import StoredDataset

_SHEET = 64
_THUMBNAIL = 128
_NAMED = 8  # sizes and licences that are listed

Source = Annotated[Path, typer.Argument(metavar="SRC", help="A folder of pictures, shards or encoded pictures.")]


def verify(source: Source, as_json: Json = False) -> None:
    """Read everything in a data set, and list what is wrong: exit code 1 if anything is."""
    from sfumato.data.moments import is_moments, open_moments
    from sfumato.data.open_dataset import open_dataset
    from sfumato.data.reports import verify as check

    if is_moments(source):
        moments = open_moments(source)
        samples, problems = len(moments), tuple(moments.problems())
    else:
        report = check(open_dataset(source, captions_required=False))
        samples, problems = report.samples, report.problems
    if as_json:
        write_json({"path": str(source), "samples": samples, "whole": not problems, "problems": problems})
    else:
        for problem in problems or (f"{source}: {samples} samples, all well",):
            write_line(problem)
    if problems:
        raise typer.Exit(1)


def stats(
    source: Source,
    samples: Annotated[int | None, typer.Option(min=1, metavar="N", help="Look at N, evenly spread.")] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw some of them on a sheet.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Count what is in a data set: sizes, captions, licences, copies; of encoded pictures, the scale of the latents."""
    from sfumato.data.moments import is_moments, open_moments
    from sfumato.data.open_dataset import open_dataset
    from sfumato.data.reports import stats as count
    from sfumato.data.samples import StoredSubset, spread

    if is_moments(source):
        _say({"path": str(source), **_latents(open_moments(source), samples or 1000)}, as_json)
        return
    dataset = open_dataset(source, captions_required=False)
    looked = dataset if samples is None else StoredSubset(dataset, spread(len(dataset), samples))
    with tracking() as tracker:
        report = count(looked, tracker.on_progress)
    if sheet is not None:
        _draw(dataset, sheet, overwrite)
    about: dict[str, Any] = dataclasses.asdict(report)
    about["sizes"] = {f"{width}×{height}": number for (width, height), number in report.sizes.items()}
    about["median_size"] = "×".join(map(str, report.median_size))
    if not as_json:
        about["picture_bytes"] = readable(report.picture_bytes)
        about["words_a_caption"] = f"{report.words_a_caption:.1f}"
        for name in ("sizes", "modes", "licenses"):
            about[name] = _frequent(about[name])
    _say({"path": str(source), **about, "sheet": str(sheet) if sheet else None}, as_json)


def _say(about: dict[str, Any], as_json: bool) -> None:
    if as_json:
        write_json(about)
    else:
        stdout_console().print(facts({name.replace("_", " "): value for name, value in about.items()}))


def _frequent(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(f"{name} ({number})" for name, number in ordered[:_NAMED]) + more


def _draw(dataset: StoredDataset, path: Path, overwrite: bool) -> None:
    import io

    from PIL import Image

    from sfumato.data.samples import spread
    from sfumato.data.transforms import Preparation
    from sfumato.files import write_bytes
    from sfumato.pictures.contact_sheet import montage

    square = Preparation(width=_THUMBNAIL, height=_THUMBNAIL)
    pictures = [square(dataset.sample(i).picture) for i in spread(len(dataset), _SHEET)]
    buffer = io.BytesIO()
    Image.fromarray(montage(pictures)).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue(), overwrite=overwrite)


def _latents(moments: Moments, samples: int) -> dict[str, Any]:
    """The factor that gives latents a deviation of 1, as it is found from some of them (Rombach et al. 2022, D.1)."""
    import torch

    from sfumato.data.samples import spread

    means, variances = [], []
    for index in spread(len(moments), samples):
        part, row = moments.locate(index)
        mean, logvar = part.moments(row)
        means.append(mean.float())
        variances.append(logvar.float().exp())
    mean, variance = torch.stack(means), torch.stack(variances)
    deviation = float((mean.var(correction=0) + variance.mean()).sqrt())
    return {
        "samples": len(moments),
        "shape": "×".join(map(str, mean.shape[1:])),
        "looked_at": len(means),
        "autoencoder": moments.autoencoder,
        "preparation": dataclasses.asdict(moments.preparation),
        "latent_deviation": round(deviation, 6),
        "scaling_factor": round(1.0 / deviation, 6),
        "posterior_deviation": round(float(variance.mean().sqrt()), 6),
    }
