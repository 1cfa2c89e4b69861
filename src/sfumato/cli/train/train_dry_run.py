"""`--dry-run`: parameters, memory, time, cost and CO2 of a run that isn't begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from sfumato.cli.models.inspect import readable
from sfumato.cli.terminal.output_lines import facts, stdout_console, table, write_json
from sfumato.report.emissions.estimate import Estimate, estimate, rounded
from sfumato.runtime import processor_name, resolve_device
from sfumato.train.forecast import Forecast, Plan, forecast, measured_rate
from sfumato.train.published_rates import CARD_A100_HOURS, SOURCE, a100_hours

if TYPE_CHECKING:
    from sfumato.cli.train.train_options import DryRunOptions, RunOptions
    from sfumato.train.recipes import Stage

_MEASURED_UP_TO = 50_000_000  # parameters: more would take minutes on a CPU


def write_recipe_forecast(name: str, stages: Mapping[str, Stage], planned: DryRunOptions, options: RunOptions) -> None:
    """Write the samples of each stage, and device hours at a given rate or at what others measured on A100s."""
    rows: list[dict[str, Any]] = []
    for key, stage in stages.items():
        hours = (
            a100_hours(stage.samples, stage.resolution)
            if planned.images_per_second is None
            else stage.samples / planned.images_per_second / 3600.0
        )
        rows.append({"stage": key, "resolution": stage.resolution, "samples": stage.samples, "hours": hours})
    known = [row["hours"] for row in rows if row["hours"] is not None]
    total = sum(known) if len(known) == len(rows) else None
    about: dict[str, Any] = {
        "recipe": name,
        "stages": rows,
        "samples": sum(row["samples"] for row in rows),
        "device_hours": total,
        "rate": SOURCE if planned.images_per_second is None else "given",
        "card_device_hours": CARD_A100_HOURS if name.startswith("v1") else None,
        **_costs(total, planned),
    }
    if options.as_json:
        write_json(about)
        return
    listed = table("stage", "pixels", "samples", "device hours")
    for row in rows:
        shown = "unknown" if row["hours"] is None else f"{row['hours']:,.0f}"
        listed.add_row(row["stage"], str(row["resolution"]), f"{row['samples']:,}", shown)
    console = stdout_console()
    console.print(listed)
    console.print(
        facts(
            {
                "samples": f"{about['samples']:,}",
                "device hours": None if total is None else f"{total:,.0f} ({about['rate']})",
                "the card says": f"{CARD_A100_HOURS:,} A100 hours" if about["card_device_hours"] else None,
                **_cost_facts(about),
            }
        )
    )


def write_forecast(plan: Plan, planned: DryRunOptions, options: RunOptions) -> None:
    """Write parameters, memory, time, cost and emissions of one run."""
    device = resolve_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    found = forecast(plan)
    rate, whence = planned.images_per_second, "given"
    if rate is None and sum(found.parameters.values()) <= _MEASURED_UP_TO:
        rate, whence = measured_rate(plan, device), f"measured here: {processor_name(device)}"
    hours = None if rate is None else found.samples / (rate * planned.devices) / 3600.0
    about = {
        "parameters": dict(found.parameters),
        "learning": found.learning,
        "samples": found.samples,
        "memory": {name: getattr(found.memory, name) for name in _MEMORY} | {"total": found.memory.total},
        "images_per_second": rate,
        "rate": None if rate is None else whence,
        "hours": hours,
        "device_hours": None if hours is None else hours * planned.devices,
        **_costs(None if hours is None else hours * planned.devices, planned),
    }
    if options.as_json:
        write_json(about)
    else:
        _show(found, about, planned)


_MEMORY = ("weights", "gradients", "optimizer", "average", "activations")


def _show(found: Forecast, about: Mapping[str, Any], planned: DryRunOptions) -> None:
    parts = table("part", "parameters")
    for name, count in found.parameters.items():
        parts.add_row(name, f"{count:,}")
    parts.add_row("of them learning", f"{found.learning:,}")
    memory = table("memory a device", "")
    for name in _MEMORY:
        memory.add_row(name, readable(about["memory"][name]))
    memory.add_row("in all, at most", readable(found.memory.total))
    console = stdout_console()
    console.print(parts)
    console.print(memory)
    hours, rate = about["hours"], about["images_per_second"]
    console.print(
        facts(
            {
                "samples": f"{found.samples:,}",
                "images/s": "unknown: give --images-per-second" if rate is None else f"{rate:,.4g} ({about['rate']})",
                "time": None if hours is None else f"{hours:,.3g} hours on {planned.devices} of them",
                **_cost_facts(about),
            }
        )
    )


def _costs(device_hours: float | None, planned: DryRunOptions) -> dict[str, Any]:
    """Price, energy and CO2, as far as what they rest on was given."""
    cost = None if device_hours is None or planned.price is None else device_hours * planned.price
    emissions: Estimate | None = None
    if device_hours is not None and (planned.hardware is not None or planned.watts is not None):
        emissions = estimate(
            hours=device_hours,
            hardware=planned.hardware,
            watts=planned.watts,
            region=planned.region,
            intensity=planned.intensity,
            pue=planned.pue,
        )
    return {"cost": cost, "emissions": None if emissions is None else emissions.to_values()}


def _cost_facts(about: Mapping[str, Any]) -> dict[str, Any]:
    emissions = about["emissions"]
    unknown = "unknown: give --hardware or --watts, and --region or --intensity"
    constants = [] if emissions is None else emissions["constants"]
    return {
        "cost": None if about["cost"] is None else rounded(about["cost"]),
        "energy and CO2": unknown if emissions is None else emissions["formula"],
        **{c["name"]: f"{c['value']:g} {c['unit']} ({c['source']})" for c in constants},
    }
