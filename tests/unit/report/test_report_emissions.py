"""Emissions against the formula written out, the published figures, and codecarbon's own tables."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from codecarbon.input import DataSource

from sfumato.errors import DataError, InvalidRequest, ModelNotFound
from sfumato.report.emissions.emission_tables import find_grid, find_hardware, grids, hardware, sources
from sfumato.report.emissions.estimate import card_estimates, equivalents, estimate, rounded
from sfumato.report.emissions.measured_command import measure
from sfumato.report.emissions.run_emissions import estimate_run
from sfumato.train.logs.compute_log import SessionLog, read_sessions
from sfumato.train.run_folder import SESSIONS


def test_the_three_published_figures() -> None:
    """11,250 kg is the card's; 13,793 what its method's table says for the same place; 18,000 the card's grid with the
    400 W of an SXM4."""
    card, calculator, sxm = (found for _, found in card_estimates())
    assert card.kg == pytest.approx(0.25 * 150_000 * 0.300, rel=1e-12) and card.kg == pytest.approx(11_250)
    assert calculator.kg == pytest.approx(0.25 * 150_000 * 0.3678, rel=1e-12)
    assert [rounded(found.kg or 0.0) for found in (card, calculator, sxm)] == ["11,250", "13,793", "18,000"]
    assert card.formula == "0.25 kW × 150,000 h × PUE 1 = 37,500 kWh; × 0.3 kg/kWh = 11,250 kg CO2eq"
    assert card.intensity is not None and "implied" in card.intensity.source.cite


@pytest.mark.parametrize(("count", "hours", "pue"), [(1, 2.5, None), (8, 100.0, 1.1), (256, 0.01, 1.58)])
def test_formula(count: int, hours: float, pue: float | None) -> None:
    found = estimate(hardware="V100 SXM2", count=count, hours=hours, region="aws/eu-west-3", pue=pue)
    assert found.kwh == pytest.approx(0.300 * count * hours * (pue or 1.0), rel=1e-12)
    assert found.kg == pytest.approx(found.kwh * 0.105, rel=1e-12)


def test_own_power_and_grid() -> None:
    found = estimate(watts=65.0, hours=10.0, intensity=0.05)
    assert found.kg == pytest.approx(0.065 * 10 * 0.05)
    assert {constant.source.cite for constant in found.constants} >= {"given by the user"}


def test_without_a_grid_the_emissions_are_unknown() -> None:
    found = estimate(hardware="T4", hours=10.0)
    assert found.kwh == pytest.approx(0.7) and found.kg is None and equivalents(found.kg) == ()
    assert found.to_values()["kg_co2eq"] is None and "kg" not in found.formula


def test_equivalents_are_epas() -> None:
    """A gallon is 8,887 g and a mile 400 g: a car of 22.2 miles a gallon."""
    kilometres, litres, trees = (constant.value for constant in equivalents(100.0))
    assert kilometres / 1.609344 * 0.4 == pytest.approx(100.0)
    assert litres / 3.785411784 * 8.887 == pytest.approx(100.0)
    assert trees * 60.0 == pytest.approx(100.0)


def test_every_constant_has_a_source_and_every_name_is_one_things() -> None:
    used = {device.source.cite for device in hardware()} | {grid.source.cite for grid in grids()}
    assert used <= {source.cite for source in sources().values()}
    assert all(source.cite and source.url.startswith("https://") for source in sources().values())
    regions = [grid.region for grid in grids()]
    assert len(set(regions)) == len(regions) > 300
    assert all(find_grid(grid.region) is grid for grid in grids())
    assert all(find_hardware(name) is device for device in hardware() for name in (device.name, *device.also))
    assert all(0.0 < grid.kg_per_kwh < 1.5 and 2018 <= grid.year <= 2025 for grid in grids())


def test_countries_are_codecarbons() -> None:
    theirs = DataSource().get_global_energy_mix_data()
    ours = {grid.region.upper(): grid for grid in grids() if "Our World in Data" in grid.source.cite}
    assert len(ours) > 200
    for code, grid in ours.items():
        assert grid.kg_per_kwh * 1000.0 == pytest.approx(theirs[code]["carbon_intensity"], rel=1e-5)
        assert grid.year == theirs[code]["year"]


@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("NVIDIA A100-SXM4-80GB", 400),
        ("Tesla T4", 70),
        ("nvidia h100 pcie", 350),
        ("AMD EPYC 7763 64-Core Processor", 280),
    ],
)
def test_drivers_names_are_known(name: str, watts: float) -> None:
    assert find_hardware(name).watts == watts


def test_grids_by_name_code_and_provider() -> None:
    assert find_grid("France") is find_grid("FRA") is find_grid("fra")
    assert find_grid("us-east-1") is find_grid("us-east-1", "aws") is find_grid("aws/us-east-1")
    assert find_grid("virginia").region == "us/virginia"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hardware": "A100", "hours": 1.0}, "A100 PCIe 40GB or A100 PCIe 80GB"),
        ({"hardware": "RTX 3099", "hours": 1.0}, "RTX 3090"),
        ({"hardware": "abacus", "hours": 1.0}, "--watts"),
        ({"hours": 1.0}, "no hardware"),
        ({"hardware": "T4", "hours": -1.0}, "hours = -1"),
        ({"hardware": "T4", "hours": float("nan")}, "hours = nan"),
        ({"hardware": "T4", "hours": 1.0, "count": 0.0}, "count = 0"),
        ({"watts": -5.0, "hours": 1.0}, "watts = -5"),
        ({"hardware": "T4", "hours": 1.0, "region": "us-east-9"}, "us-east-1"),
        ({"hardware": "T4", "hours": 1.0, "region": "georgia"}, r"geo \(Georgia\) or us/georgia"),
        ({"hardware": "T4", "hours": 1.0, "provider": "aws"}, "--region"),
        ({"hardware": "T4", "hours": 1.0, "intensity": -0.1}, "intensity = -0.1"),
        ({"hardware": "T4", "hours": 1.0, "pue": 0.9}, "pue = 0.9"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        estimate(**wrong)
    assert "\n" not in str(caught.value)


def test_measured_energy_times_our_grid_and_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address) or [])
    result, found = measure(lambda: sum(range(100_000)), region="fra", pue=1.5)
    assert result == 4_999_950_000
    assert found.device_kwh > 0.0 and found.power is None and "codecarbon" in found.method
    assert found.kg == pytest.approx(found.device_kwh * 1.5 * find_grid("fra").kg_per_kwh, rel=1e-12)
    assert asked == []


def test_what_is_measured_may_fail_as_itself() -> None:
    with pytest.raises(ZeroDivisionError):
        measure(lambda: 1 / 0)


def test_a_runs_sessions_add_up(tmp_path: Path) -> None:
    """The last line of a session counts, and one cut off by a crash doesn't."""

    def line(started: str, seconds: float, device: str = "Tesla T4") -> str:
        values = {"started": started, "seconds": seconds, "device": device, "devices": 2}
        return json.dumps(values | {"first_step": 0, "last_step": 5}) + "\n"

    lines = (
        line("a", 1800.0) + line("a", 3600.0) + line("b", 1800.0) + line("c", 7200.0, "NVIDIA L4") + '{"started": "d'
    )
    (tmp_path / SESSIONS).write_text(lines, encoding="utf-8")
    t4, l4 = estimate_run(tmp_path, region="fra")
    assert t4.kwh == pytest.approx(0.070 * 2 * 1.5) and l4.kwh == pytest.approx(0.072 * 2 * 2.0)
    (as_one,) = estimate_run(tmp_path, hardware="A10")
    assert as_one.kwh == pytest.approx(0.150 * 2 * 3.5)


def test_a_session_is_noted_as_it_goes(tmp_path: Path) -> None:
    log = SessionLog(tmp_path, device="Tesla T4", devices=1, step=10)
    log.write(12)
    log.write(20)
    (session,) = read_sessions(tmp_path)
    assert (session.device, session.first_step, session.last_step) == ("Tesla T4", 10, 20)
    assert session.seconds >= 0.0
    SessionLog(tmp_path, device="Tesla T4", devices=1, step=20).write(30)
    assert [session.last_step for session in read_sessions(tmp_path)] == [20, 30]


def test_a_run_without_times_is_an_error_and_so_is_damage(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="--hours"):
        estimate_run(tmp_path)
    for damage in ('{"started": 3}', "[1]", '{"started": "a", "seconds": -1, "device": "T4", "devices": 1}', "7"):
        (tmp_path / SESSIONS).write_text(damage + "\n", encoding="utf-8")
        with pytest.raises(DataError, match="line 1"):
            read_sessions(tmp_path)
