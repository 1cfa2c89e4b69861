"""`sfumato data`: from a list of addresses, or a folder, to what training reads."""

from __future__ import annotations

import typer

from sfumato.cli.data_encode import encode
from sfumato.cli.data_filter import filter_rows

data = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@data.callback()
def about_data() -> None:
    """Filter, download, shard, encode, verify and describe data sets."""


data.command("filter")(filter_rows)
data.command()(encode)
