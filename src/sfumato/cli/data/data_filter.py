"""`sfumato data filter`: the rows of a list of pictures that are worth a download."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.choices import check_choice
from sfumato.cli.options.flags import Json
from sfumato.cli.terminal.output_lines import literal, stdout_console, table, write_json
from sfumato.cli.terminal.progress_bar import tracking
from sfumato.errors import InvalidRequest

_rule = partial(typer.Option, rich_help_panel="Rules")
PRESETS = ("laion2B-en", "laion-high-resolution", "laion-improved-aesthetics", "laion-aesthetics-v2-5+")

Score = Annotated[float | None, _rule(metavar="X")]


def filter_rows(
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="Parquet files, or folders of them.")],
    to: Annotated[Path, typer.Option("--out", "-o", metavar="DST", help="The folder to write.")],
    preset: Annotated[
        str | None,
        _rule(
            metavar="NAME",
            help=f"A data set of the model card: {', '.join(PRESETS)}. The rules below change it.",
            autocompletion=lambda: list(PRESETS),
        ),
    ] = None,
    min_side: Annotated[int | None, _rule(min=1, metavar="PX", help="Least width and least height.")] = None,
    aesthetics: Score = None,
    watermark: Score = None,
    unsafe: Score = None,
    similarity: Score = None,
    removals: Annotated[Path | None, _rule(metavar="FILE", help="Leave out these addresses, one a line.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="ROLE=NAME", help="What a column is called, as aesthetics=SCORE.")
    ] = None,
    memory: Annotated[int, typer.Option(min=64, metavar="MB", help="Memory to use.")] = 2048,
    as_json: Json = False,
) -> None:
    """Keep the rows of a list of pictures (LAION's columns) by size, aesthetics, watermark and safety.

    --aesthetics and --similarity are scores to be above, --watermark and --unsafe probabilities to be below.

    sfumato data filter laion2B-en -o kept --preset laion-improved-aesthetics --unsafe 0.1
    """
    from sfumato.data.laion_filter import PRESETS as RULES
    from sfumato.data.laion_filter import Rules, filter_tables, parquet_files

    if preset is not None:
        check_choice("preset", preset, RULES)
    given: dict[str, Any] = {
        "min_side": min_side,
        "aesthetics_above": aesthetics,
        "watermark_below": watermark,
        "unsafe_below": unsafe,
        "similarity_above": similarity,
    }
    rules = dataclasses.replace(
        RULES[preset] if preset else Rules(), **{name: value for name, value in given.items() if value is not None}
    )
    with tracking() as tracker:
        report = filter_tables(
            parquet_files(sources),
            to,
            rules,
            columns=_columns(column or []),
            removals=removals,
            memory=memory,
            on_progress=tracker.on_progress,
        )
    if as_json:
        write_json({"path": str(to), "rules": rules.values(), **dataclasses.asdict(report), "kept": report.kept})
        return
    shown = table("rule", "rows left", "refused by it alone")
    for name, rows in report.funnel.items():
        value = f" {rules.values()[name]:g}" if name in rules.values() else ""
        shown.add_row(literal(name.replace("_", " ") + value), literal(rows), literal(report.alone.get(name, "")))
    stdout_console().print(shown)
    stdout_console().print(literal(f"{report.kept} of {report.funnel['rows']} rows, in {to}"))


def _columns(pairs: list[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        role, mark, name = pair.partition("=")
        if not mark or not name:
            raise InvalidRequest(f"column {pair!r:.60} must say what is called what: aesthetics=SCORE")
        columns[role] = name
    return columns
