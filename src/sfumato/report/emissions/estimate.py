"""What a computation cost in electricity and CO2: power × time × PUE × intensity of the grid (Lacoste et al. 2019).

Nothing is assumed: where no grid is given the energy is known and the emissions are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sfumato.errors import InvalidRequest
from sfumato.report.emissions.emission_tables import Grid, Source, find_grid, find_hardware, sources

METHOD = "Lacoste et al. 2019, Quantifying the Carbon Emissions of Machine Learning, arXiv:1910.09700"
GIVEN = Source(cite="given by the user", url="")
_MILE = 1.609344  # km
_GALLON = 3.785411784  # litres


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A number an estimate rests on, and where it comes from."""

    name: str
    value: float
    unit: str
    source: Source

    def __str__(self) -> str:
        return f"{self.name}: {self.value:g} {self.unit}".rstrip() + f" ({self.source})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Energy and emissions of `count` devices for `hours` each.

    `power` is a device's in kW, None where the energy was measured. `device_kwh` is what the devices took; a data
    centre takes `pue` times as much. `intensity` (kg CO2eq a kWh) is None where the grid is unknown, and so is `kg`.
    """

    hardware: str
    count: float
    hours: float
    power: Constant | None
    device_kwh: float
    pue: Constant
    intensity: Constant | None
    method: str

    @property
    def kwh(self) -> float:
        """Energy with the data centre's share."""
        return self.device_kwh * self.pue.value

    @property
    def kg(self) -> float | None:
        """kg CO2eq; None where the grid is unknown."""
        return None if self.intensity is None else self.kwh * self.intensity.value

    @property
    def formula(self) -> str:
        """The arithmetic, with its numbers."""
        measured = f"{self.device_kwh:.4g} kWh measured"
        power = measured if self.power is None else f"{self.power.value:g} kW × {_hours(self.count, self.hours)}"
        energy = f"{power} × PUE {self.pue.value:g} = {rounded(self.kwh)} kWh"
        if self.intensity is None:
            return energy
        return f"{energy}; × {self.intensity.value:g} kg/kWh = {mass(self.kg)}"

    @property
    def constants(self) -> tuple[Constant, ...]:
        """Every constant the result rests on."""
        return tuple(constant for constant in (self.power, self.pue, self.intensity) if constant is not None)

    def to_values(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "hardware": self.hardware,
            "count": self.count,
            "hours": self.hours,
            "kwh": self.kwh,
            "kg_co2eq": self.kg,
            "formula": self.formula,
            "method": self.method,
            "constants": [
                {"name": c.name, "value": c.value, "unit": c.unit, "source": c.source.cite, "url": c.source.url}
                for c in self.constants
            ],
            "equivalents": [
                {"amount": c.value, "unit": f"{c.unit} {c.name}", "source": c.source.cite} for c in equivalents(self.kg)
            ],
        }


def estimate(
    *,
    hours: float,
    hardware: str | None = None,
    count: float = 1.0,
    watts: float | None = None,
    region: str | None = None,
    provider: str | None = None,
    intensity: float | None = None,
    pue: float | None = None,
    given: Source = GIVEN,
) -> Estimate:
    """Estimate from published power and grid tables, or from `watts` a device and `intensity` in kg CO2eq a kWh.

    `hours` is what each of the `count` devices ran. Without `pue` the data centre's own share isn't counted. `given` is
    where the numbers passed come from. Raises `InvalidRequest` for an unknown name (with the nearest ones) and for a
    number that can't be.
    """
    _above("hours", hours, or_equal=True)
    _above("count", count)
    if hardware is None and watts is None:
        raise InvalidRequest("no hardware: give --hardware, such as 'A100 SXM4 40GB', or --watts", field="hardware")
    if watts is not None:
        _above("watts", watts)
        name = hardware or "device"
        power = Constant(name=f"power of {name}", value=watts / 1000.0, unit="kW", source=given)
    else:
        device = find_hardware(hardware or "")
        name = device.name
        power = Constant(name=f"power of {name}", value=device.watts / 1000.0, unit="kW", source=device.source)
    return Estimate(
        hardware=name,
        count=count,
        hours=hours,
        power=power,
        device_kwh=power.value * count * hours,
        pue=pue_constant(pue, given),
        intensity=intensity_constant(region, provider, intensity, given),
        method=METHOD,
    )


def intensity_constant(
    region: str | None, provider: str | None, intensity: float | None, given: Source = GIVEN
) -> Constant | None:
    """The grid's, from the table or as given; None where neither says. Raises `InvalidRequest`."""
    if intensity is not None:
        _above("intensity", intensity, or_equal=True)
        where = f" of {region}" if region else ""
        return Constant(name=f"grid intensity{where}", value=intensity, unit="kg CO2eq/kWh", source=given)
    if region is None:
        if provider is not None:
            raise InvalidRequest(f"provider {provider!r} without a region: give --region too", field="region")
        return None
    return _of_grid(find_grid(region, provider))


def pue_constant(pue: float | None, given: Source = GIVEN) -> Constant:
    """A data centre's energy over its computers'. Raises `InvalidRequest` below 1."""
    if pue is None:
        uncounted = Source(cite="the data centre's own share is not counted", url="")
        return Constant(name="PUE", value=1.0, unit="", source=uncounted)
    if not 1.0 <= pue <= 10.0:
        raise InvalidRequest(f"pue = {pue:g} must be from 1 to 10: energy of the data centre over its computers'")
    return Constant(name="PUE", value=pue, unit="", source=given)


def equivalents(kg: float | None) -> tuple[Constant, ...]:
    """Amounts of what emits, or takes up, as much CO2 as `kg`, most telling first. Empty where `kg` is unknown."""
    if kg is None:
        return ()
    vehicle, tree = sources()["epa-vehicle"], sources()["epa-tree"]
    return (
        Constant(name="by an average passenger car", value=kg / (0.4 / _MILE), unit="km", source=vehicle),
        Constant(name="of gasoline burnt", value=kg / (8.887 / _GALLON), unit="litres", source=vehicle),
        Constant(name="grown for ten years", value=kg / 60.0, unit="tree seedlings", source=tree),
    )


def card_estimates() -> tuple[tuple[str, Estimate], ...]:
    """The v1 model card's figure, and what the same 150,000 hours give with the other published constants."""
    hours, card = 150_000.0, sources()["stable-diffusion-card"]

    def with_card_grid(device: str) -> Estimate:
        return estimate(hardware=device, hours=hours, intensity=0.3, given=card)

    return (
        ("the model card", with_card_grid("A100 PCIe 40GB")),
        ("the calculator's own table", estimate(hardware="A100 PCIe 40GB", hours=hours, region="aws/us-east-1")),
        ("the A100s of most clouds (SXM4)", with_card_grid("A100 SXM4 40GB")),
    )


def rounded(value: float) -> str:
    """A figure as people read it: whole from 100 on, else three digits that count; halves are rounded up."""
    if value >= 100.0:
        return f"{math.floor(round(value, 6) + 0.5):,}"
    return f"{value:.3g}"


def mass(kg: float | None) -> str:
    """kg CO2eq in words, in grams where it is little."""
    if kg is None:
        return "unknown"
    return f"{rounded(kg)} kg CO2eq" if kg >= 0.1 or kg == 0.0 else f"{rounded(1000.0 * kg)} g CO2eq"


def _of_grid(grid: Grid) -> Constant:
    name = f"grid intensity of {grid.place} ({grid.region}), {grid.year}"
    return Constant(name=name, value=grid.kg_per_kwh, unit="kg CO2eq/kWh", source=grid.source)


def _hours(count: float, hours: float) -> str:
    return f"{hours:,.6g} h" if count == 1.0 else f"{count:g} × {hours:,.6g} h"


def _above(name: str, value: float, *, or_equal: bool = False) -> None:
    if not math.isfinite(value) or value < 0.0 or (value == 0.0 and not or_equal):
        least = "0 or more" if or_equal else "above 0"
        raise InvalidRequest(f"{name} = {value:g} must be a number {least}", field=name)
