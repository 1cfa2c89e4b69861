"""`sfumato data`: from a list of addresses, or a folder, to what training reads."""

from __future__ import annotations

import typer

from sfumato.cli.data.data_download import download
from sfumato.cli.data.data_encode import encode
from sfumato.cli.data.data_filter import filter_rows
from sfumato.cli.data.data_report import stats, verify
from sfumato.cli.data.data_shard import shard

data = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@data.callback()
def about_data() -> None:
    """Filter, download, shard, encode, verify and describe data sets."""


data.command("filter")(filter_rows)
data.command()(download)
data.command()(shard)
data.command()(encode)
data.command()(verify)
data.command()(stats)
