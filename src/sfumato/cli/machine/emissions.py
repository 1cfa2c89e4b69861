"""`sfumato emissions`: electricity and CO2 of a computation, with every constant's source."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.options.flags import Json
from sfumato.cli.terminal.output_lines import facts, literal, stdout_console, table, write_json
from sfumato.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sfumato.report.emissions.estimate import Constant, Estimate

_what = partial(typer.Option, rich_help_panel="What ran")
_where = partial(typer.Option, rich_help_panel="Where")
_LEAST = 0.01  # of an equivalent, to be worth a line


def emissions(
    command: Annotated[list[str] | None, typer.Argument(metavar="[-- COMMAND…]", help="What --measure runs.")] = None,
    hardware: Annotated[str | None, _what("--hardware", metavar="NAME", help="Device, as 'A100 SXM4 40GB'.")] = None,
    watts: Annotated[float | None, _what(metavar="W", help="A device's power, if not the table's.")] = None,
    hours: Annotated[float | None, _what(metavar="H", help="How long each device ran.")] = None,
    count: Annotated[float, _what(metavar="N", help="Devices.")] = 1.0,
    run: Annotated[Path | None, _what(metavar="FOLDER", help="Hours and device from a training run.")] = None,
    measure: Annotated[bool, _what("--measure", metavar="", help="Run COMMAND and measure, by codecarbon.")] = False,
    region: Annotated[
        str | None, _where(metavar="NAME", help="Country, us/STATE, or a provider's, as aws/us-east-1.")
    ] = None,
    provider: Annotated[str | None, _where(metavar="NAME", help="aws, azure or gcp.")] = None,
    intensity: Annotated[float | None, _where(metavar="KG", help="The grid's kg CO2eq a kWh, if known.")] = None,
    pue: Annotated[
        float | None,
        _where(metavar="X", help="Energy of the data centre over its computers'. [dim]\\[not counted][/dim]"),
    ] = None,
    reproduce_card: Annotated[
        bool, typer.Option("--reproduce-card", metavar="", help="The v1 card's figure, and others from its hours.")
    ] = False,
    tables: Annotated[
        bool, typer.Option("--tables", metavar="", help="List the hardware and grids we have figures for.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Estimate electricity and CO2 of a computation: power × hours × PUE × the grid's intensity, sources named.

    sfumato emissions --hardware "A100 PCIe 40GB" --hours 150000 --region aws/us-east-1
    """
    from sfumato.report.emissions.estimate import card_estimates, estimate

    if command and not measure:
        raise InvalidRequest("a command is only run with --measure: add it, or leave the command out")
    chosen = [name for name, there in _modes(hours, run, measure, reproduce_card, tables).items() if there]
    if len(chosen) != 1:
        given = f"{' and '.join(chosen)} were given" if chosen else "nothing was given"
        raise InvalidRequest(f"{given}: give one of --hours, --run, --measure, --reproduce-card or --tables")
    where: dict[str, Any] = {"region": region, "provider": provider, "intensity": intensity, "pue": pue}
    if tables:
        _write_tables(as_json)
    elif reproduce_card:
        named = card_estimates()
        if as_json:
            write_json([{"whose": whose, **found.to_values()} for whose, found in named])
        else:
            _write_card(named)
    elif measure:
        if not command:
            raise InvalidRequest("nothing to measure: put a command behind --measure --")
        code, found = _measured(command, where)
        _write([found], as_json)
        if code:
            raise typer.Exit(1)
    elif run is not None:
        from sfumato.report.emissions.run_emissions import estimate_run

        _write(estimate_run(run, hardware=hardware, watts=watts, **where), as_json)
    else:
        _write([estimate(hours=hours or 0.0, hardware=hardware, count=count, watts=watts, **where)], as_json)


def _modes(hours: float | None, run: Path | None, measure: bool, card: bool, tables: bool) -> dict[str, bool]:
    return {
        "--hours": hours is not None,
        "--run": run is not None,
        "--measure": measure,
        "--reproduce-card": card,
        "--tables": tables,
    }


def _measured(command: Sequence[str], where: dict[str, Any]) -> tuple[int, Estimate]:
    """The exit code of the command, whose own results go to stderr, and what it took."""
    from sfumato.report.emissions.measured_command import measure

    def work() -> int:
        try:
            return subprocess.run(command, stdout=sys.stderr, check=False).returncode
        except OSError as error:
            raise InvalidRequest(f"{command[0]!r} can't be run: {error.strerror or error}") from error

    return measure(work, **where)


def _write(found: Sequence[Estimate], as_json: bool) -> None:
    from sfumato.report.emissions.estimate import equivalents, mass, rounded

    unknown = any(one.kg is None for one in found)
    kg = None if unknown else sum(one.kg or 0.0 for one in found)
    if as_json:
        total = {"kwh": sum(one.kwh for one in found), "kg_co2eq": kg}
        write_json(found[0].to_values() if len(found) == 1 else {**total, "parts": [one.to_values() for one in found]})
        return
    console = stdout_console()
    for one in found:
        console.print(
            facts(
                {
                    "hardware": one.hardware if one.count == 1 else f"{one.count:g} × {one.hardware}",
                    "hours": f"{one.hours:,.6g}",
                    "energy": f"{rounded(one.kwh)} kWh",
                    "emissions": "unknown: give --region or --intensity" if one.kg is None else mass(one.kg),
                    "formula": one.formula,
                    "method": one.method,
                }
            )
        )
        _write_constants(one.constants)
    if len(found) > 1:
        energy = rounded(sum(one.kwh for one in found))
        console.print(facts({"in all": f"{energy} kWh" + ("" if kg is None else f", {mass(kg)}")}))
    for same in equivalents(kg):
        if same.value >= _LEAST:
            console.print(literal(f"as much as {rounded(same.value)} {same.unit} {same.name} ({same.source.cite})"))


def _write_constants(constants: Iterable[Constant]) -> None:
    """Value, what it is, and whose it is; addresses are in the JSON."""
    listed = table("constant", "what it is, and its source (addresses: --json)")
    for constant in dict.fromkeys(constants):
        listed.add_row(
            literal(f"{constant.value:g} {constant.unit}".rstrip(), "bold cyan"),
            literal(f"{constant.name}: {constant.source.cite}"),
        )
    stdout_console().print(listed)


def _write_card(named: Sequence[tuple[str, Estimate]]) -> None:
    from sfumato.report.emissions.estimate import rounded

    figures = table("with the constants of", "kg CO2eq", "kWh", "formula")
    for whose, found in named:
        figures.add_row(literal(whose, "bold cyan"), rounded(found.kg or 0.0), rounded(found.kwh), found.formula)
    console = stdout_console()
    console.print(figures)
    _write_constants(constant for _, found in named for constant in found.constants)
    console.print(literal(f"method: {named[0][1].method}"))


def _write_tables(as_json: bool) -> None:
    from sfumato.report.emissions.emission_tables import grids, hardware

    if as_json:
        write_json(
            {
                "hardware": [{"name": d.name, "watts": d.watts, "source": d.source.cite} for d in hardware()],
                "grids": [
                    {
                        "region": grid.region,
                        "place": grid.place,
                        "kg_per_kwh": grid.kg_per_kwh,
                        "year": grid.year,
                        "source": grid.source.cite,
                    }
                    for grid in grids()
                ],
            }
        )
        return
    used = [*(device.source for device in hardware()), *(grid.source for grid in grids())]
    cited = {source: number for number, source in enumerate(dict.fromkeys(used), start=1)}
    devices = table("hardware", "watts", "source")
    for device in hardware():
        devices.add_row(literal(device.name, "bold cyan"), f"{device.watts:g}", f"({cited[device.source]})")
    places = table("region", "kg CO2eq/kWh", "year", "source", "place")
    for grid in grids():
        places.add_row(
            literal(grid.region, "bold cyan"),
            f"{grid.kg_per_kwh:.4g}",
            str(grid.year),
            f"({cited[grid.source]})",
            literal(grid.place),
        )
    console = stdout_console()
    console.print(devices)
    console.print(places)
    console.print(facts({f"({number})": str(source) for source, number in cited.items()}))
