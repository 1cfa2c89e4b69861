"""`sfumato data shard`: any data set as shards, without copies and without what can't be used."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.options.flags import Json
from sfumato.cli.terminal.output_lines import write_json, write_line
from sfumato.cli.terminal.progress_bar import tracking


def shard(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of pictures or of shards.")],
    to: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What the shards are called.")] = "shard",
    per_shard: Annotated[int, typer.Option(min=1, metavar="N", help="Samples a shard.")] = 10_000,
    webp: Annotated[
        int | None,
        typer.Option(metavar="QUALITY", help="Encode as WebP: 0 to 100, 101 is lossless. [dim]\\[copied][/dim]"),
    ] = None,
    near_duplicates: Annotated[
        int | None,
        typer.Option(
            metavar="BITS", help="Leave out pictures whose 64-bit hash is so close to an earlier one's: 4, say."
        ),
    ] = None,
    buckets: Annotated[
        int | None, typer.Option(metavar="PX", help="A folder for each shape, of about PX² pixels: 512, say.")
    ] = None,
    removals: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Leave out these addresses and SHA-256, one a line.")
    ] = None,
    uncaptioned: Annotated[
        bool, typer.Option("--uncaptioned", metavar="", help="Take pictures without a caption, too.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that look at pictures.")] = 2,
    as_json: Json = False,
) -> None:
    """Write any data set as WebDataset shards with an index, so that sample N is one seek.

    Stopped or killed, it goes on where it was.

    sfumato data shard pictures shards --near-duplicates 4 --buckets 512
    """
    from sfumato.data.open_dataset import open_dataset
    from sfumato.data.removals import read_removals
    from sfumato.data.resharding import ShardOptions, make_shards

    options = ShardOptions(
        name=name,
        samples_per_shard=per_shard,
        quality=webp,
        near_duplicates=near_duplicates,
        bucket_side=buckets,
        captions_required=not uncaptioned,
    )
    with tracking() as tracker:
        report = make_shards(
            open_dataset(source, captions_required=not uncaptioned),
            to,
            options,
            removals=read_removals(removals) if removals else None,
            workers=workers,
            on_progress=tracker.on_progress,
        )
    if as_json:
        write_json({"path": str(to), **dataclasses.asdict(report)})
        return
    left_out = "".join(f", {number} {words}" for words, number in report.left_out.items())
    write_line(f"{to}: {report.kept} of {report.samples} samples{left_out}")
    if list(report.folders) != ["."]:
        for place, number in report.folders.items():
            write_line(f"{to / place}: {number} samples")
