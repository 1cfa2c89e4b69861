"""`sfumato data download`: pictures from a list of addresses, by img2dataset."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.options.flags import Json
from sfumato.cli.terminal.output_lines import literal, stdout_console, table, write_json
from sfumato.files import user_path

_fetching = partial(typer.Option, rich_help_panel="How pictures are fetched")


def download(
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="Parquet files, or folders of them.")],
    to: Annotated[Path, typer.Option("--out", "-o", metavar="DST", help="The folder to write.")],
    downloader: Annotated[Path, typer.Option(metavar="PATH", help="The program img2dataset, in its own environment.")],
    removals: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Addresses and SHA-256 not to take, one a line.")
    ] = None,
    size: Annotated[
        int, typer.Option(min=1, metavar="PX", help="Larger pictures' shorter side is scaled to it.")
    ] = 512,
    min_side: Annotated[int, typer.Option(min=0, metavar="PX", help="Leave out pictures with a shorter side.")] = 0,
    url_column: Annotated[str, typer.Option(metavar="NAME")] = "URL",
    caption_column: Annotated[str, typer.Option(metavar="NAME")] = "TEXT",
    timeout: Annotated[int, _fetching(min=1, metavar="S")] = 10,
    retries: Annotated[int, _fetching(min=0, metavar="N")] = 1,
    processes: Annotated[int, _fetching(min=1, metavar="N")] = 1,
    threads: Annotated[int, _fetching(min=1, metavar="N", help="A process.")] = 32,
    per_shard: Annotated[int, typer.Option(min=1, metavar="N", help="Addresses a shard.")] = 10_000,
    opt_outs: Annotated[
        bool,
        _fetching("--opt-outs/--no-opt-outs", help="Leave what its server forbids by X-Robots-Tag: noai, noindex."),
    ] = True,
    distributor: Annotated[
        str, _fetching(metavar="NAME", help="img2dataset's: multiprocessing, pyspark, ray.")
    ] = "multiprocessing",
    as_json: Json = False,
) -> None:
    """Fetch the pictures of a list into shards, and count what went wrong.

    Stopped or killed, it goes on where it was.

    sfumato data download kept -o pictures --downloader ~/img2dataset/bin/img2dataset
    """
    from sfumato.data.downloading import DownloadOptions
    from sfumato.data.downloading import download as fetch
    from sfumato.data.laion_filter import parquet_files
    from sfumato.data.removals import read_removals

    options = DownloadOptions(
        size=size,
        min_side=min_side,
        url_column=url_column,
        caption_column=caption_column,
        timeout=timeout,
        retries=retries,
        processes=processes,
        threads=threads,
        samples_per_shard=per_shard,
        honour_opt_outs=opt_outs,
        distributor=distributor,
    )
    unwanted = read_removals(removals) if removals else None
    report = fetch(parquet_files(sources), to, user_path(downloader), options, removals=removals, unwanted=unwanted)
    if as_json:
        write_json({"path": str(to), **dataclasses.asdict(report)})
        return
    shown = table("outcome", "addresses")
    shown.add_row(literal("picture"), literal(report.pictures))
    for kind, number in report.errors.items():
        shown.add_row(literal(kind), literal(number))
    stdout_console().print(shown)
    taken = f"{report.pictures} pictures of {report.addresses} addresses, {report.shards} shards in {to}"
    listed = f"; {report.unwanted} are on the list of removals by their hash: leave them out with `shard --removals`"
    stdout_console().print(literal(taken + (listed if report.unwanted else "")))
