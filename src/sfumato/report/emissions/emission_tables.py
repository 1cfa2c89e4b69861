"""Published constants an estimate of emissions rests on, each with its source: power of devices, grids."""

from __future__ import annotations

import csv
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sfumato.errors import InvalidRequest

TABLES = Path(__file__).parent / "tables"

_MAKERS = re.compile(r"\b(nvidia|geforce|tesla|amd|intel|\(r\)|\(tm\))\s*|[^a-z0-9+]", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a number comes from: a citation, and a page to look at."""

    cite: str
    url: str

    def __str__(self) -> str:
        return f"{self.cite} <{self.url}>" if self.url else self.cite


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A device and the most it draws, in watts. `also` has the names that drivers give it."""

    name: str
    watts: float
    source: Source
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where electricity comes from: kg CO2eq a kWh, averaged over `year` (for a table without one, when it was
    published). `region` is unique: `fra`, `us/virginia`, `aws/us-east-1`."""

    region: str
    place: str
    kg_per_kwh: float
    year: int
    source: Source


@cache
def sources() -> Mapping[str, Source]:
    """Every source by the short name the tables use."""
    values = tomllib.loads((TABLES / "sources.toml").read_text(encoding="utf-8"))
    return {name: Source(cite=value["cite"], url=value["url"]) for name, value in values.items()}


@cache
def hardware() -> tuple[Hardware, ...]:
    """The devices we have a figure for."""
    return tuple(
        Hardware(
            name=row["name"],
            watts=float(row["watts"]),
            source=sources()[row["source"]],
            also=tuple(row["also"].split(";")) if row["also"] else (),
        )
        for row in _rows("hardware.csv")
    )


@cache
def grids() -> tuple[Grid, ...]:
    """The grids we have a figure for."""
    return tuple(
        Grid(
            region=row["region"],
            place=row["place"],
            kg_per_kwh=round(float(row["g_per_kwh"]) / 1000.0, 9),
            year=int(row["year"]),
            source=sources()[row["source"]],
        )
        for row in _rows("grids.csv")
    )


def find_hardware(name: str) -> Hardware:
    """The device of that name, ours or its driver's, whatever the case and punctuation.

    Raises `InvalidRequest` with the nearest names.
    """
    known = {_plain(alias): device for device in hardware() for alias in (device.name, *device.also)}
    if (found := known.get(_plain(name))) is not None:
        return found
    near = _nearest(_plain(name), known)
    names = dict.fromkeys(known[key].name for key in near)
    raise InvalidRequest(
        f"no figure for the hardware {name[:60]!r}: {_suggestion(names)}see `sfumato emissions --tables`, "
        "or give its power with --watts",
        field="hardware",
    )


def find_grid(region: str, provider: str | None = None) -> Grid:
    """The grid of a country (name or ISO code), a state of the USA (`us/virginia`) or a provider's region.

    `us-east-1` alone is enough where one provider has it. Raises `InvalidRequest` with the nearest names.
    """
    wanted = f"{provider}/{region}".lower() if provider else region.lower()
    known: dict[str, list[Grid]] = {}
    for grid in grids():
        alone = grid.region.rpartition("/")[2]
        for key in dict.fromkeys((grid.region, grid.place.lower(), alone)):
            known.setdefault(key, []).append(grid)
    found = known.get(wanted, [])
    if len(found) == 1:
        return found[0]
    near = found or [grid for key in _nearest(wanted, known) for grid in known[key]]
    what = f"{wanted[:60]!r} is the name of several grids" if found else f"no figure for the grid {wanted[:60]!r}"
    raise InvalidRequest(
        f"{what}: {_suggestion(dict.fromkeys(f'{grid.region} ({grid.place})' for grid in near))}"
        "see `sfumato emissions --tables`, or give its intensity with --intensity",
        field="region",
    )


def _rows(name: str) -> list[dict[str, str]]:
    with (TABLES / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _plain(name: str) -> str:
    return _MAKERS.sub("", name).lower()


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names that have `name` within them; else those close in spelling."""
    keys = list(known)
    return [key for key in keys if name and name in key][:4] or difflib.get_close_matches(name, keys, n=2, cutoff=0.55)


def _suggestion(names: Iterable[str]) -> str:
    listed = list(names)
    return f"did you mean {' or '.join(listed)}? " if listed else ""
