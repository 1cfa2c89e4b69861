"""`sfumato card`: a model's card, written or checked."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.options.flags import Json, Overwrite
from sfumato.cli.terminal.output_lines import write_json, write_line
from sfumato.errors import InvalidRequest, OutputError

if TYPE_CHECKING:
    from sfumato.modelfiles.model_library import ModelLocation
    from sfumato.report.card.card_facts import CardFacts
    from sfumato.report.card.model_traits import ModelTraits

logger = logging.getLogger("sfumato")

_SHOWN = 60  # characters of a line that differs


def card(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name, path or Hub id.")],
    facts: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="v1-1 … v1-4, or a TOML file. [dim]\\[card.toml and README.md of the model's folder][/dim]",
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="An evaluation's folder, or its scores.json. [dim]\\[that of the model's folder][/dim]"
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="A picture of it, to refer to: from where the card will be, or an address. "
            "[dim]\\[curves.png or .svg of the model's folder][/dim]",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write it. [dim]\\[stdout][/dim]")
    ] = None,
    overwrite: Overwrite = False,
    check: Annotated[
        bool,
        typer.Option("--check", metavar="", help="Compare with what is there (--out, or README.md): code 1 if not so."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a model's card: what it is, may be used for, can't do, was trained on, scores and cost.

    sfumato card pocket --out README.md
    """
    from sfumato.modelfiles.model_library import resolve
    from sfumato.report.card.card_facts import README
    from sfumato.report.card.evaluation_section import evaluation_in, read_evaluation
    from sfumato.report.card.model_traits import read_traits
    from sfumato.report.card.write_card import SOMEWHERE, make_card

    location = resolve(model, offline=True)
    traits = read_traits(location.path)
    known = _facts(facts, location, traits)
    found, picture = evaluation_in(location.path) if evaluation is None else (read_evaluation(evaluation), None)
    picture = plot or picture
    if found is not None and found.models and traits.sha256 not in found.models:
        logger.warning("the evaluation is of other weights than those of %s", location.name)
    text = make_card(
        traits,
        replace(known, name=known.name or location.name),
        call=location.hub_id or (location.name if location.source == "embedded" else SOMEWHERE),
        evaluation=found,
        plot=picture,
    )
    if check:
        _check(text, out or location.path / README, as_json)
    elif out is not None:
        from sfumato.files import write_text

        write_text(out, text, overwrite=overwrite)
        if picture is not None and "://" not in picture and not (out.parent / picture).is_file():
            logger.warning("%s refers to %s, which isn't there as seen from its folder", out, picture)
        if as_json:
            write_json({"path": str(out)})
        else:
            write_line(str(out))
    elif as_json:
        write_json({"card": text})
    else:
        for line in text.splitlines():
            write_line(line)


def _facts(chosen: str | None, location: ModelLocation, traits: ModelTraits) -> CardFacts:
    """Read the facts asked for, or those in the folder and, for a published model, what is known here."""
    from sfumato.report.card.card_facts import CardFacts, completed, facts_in, read_facts
    from sfumato.report.card.published_checkpoints import PUBLISHED, published_facts, published_name

    if chosen is not None and chosen not in PUBLISHED:
        path = Path(chosen)
        if not path.is_file():
            raise InvalidRequest(f"no facts {chosen[:60]!r}: give {', '.join(PUBLISHED)}, or a TOML file that is there")
        return read_facts(path)
    known = chosen or published_name(location.hub_id)
    own = facts_in(location.path) if location.path.is_dir() and chosen is None else CardFacts()
    if known is None:
        return own
    if not traits.v1_shaped:
        logger.warning("the facts are of Stable Diffusion %s, and %s has another shape", known, location.name)
    return completed(own, published_facts(known))


def _check(text: str, path: Path, as_json: bool) -> None:
    try:
        found = path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidRequest(f"{path} can't be compared ({reason}): write the card first, with --out") from error
    pairs = zip_longest(found.splitlines(), text.splitlines(), fillvalue="")
    differing = next(((n, old, new) for n, (old, new) in enumerate(pairs, start=1) if old != new), None)
    same = found == text
    if as_json:
        write_json({"path": str(path), "same": same, "line": differing[0] if differing else None})
    elif same:
        write_line(f"{path}: as the card would be")
    if same:
        return
    number, old, new = differing or (len(text.splitlines()), "", "")
    raise OutputError(
        f"{path}: line {number} is {old[:_SHOWN]!r} and would be {new[:_SHOWN]!r}: write the card anew, with --out"
    )
