"""Energy measured while something runs, by codecarbon (extra `emissions`), offline: nothing is looked up or sent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from sfumato.report.emissions.estimate import Estimate, intensity_constant, pue_constant
from sfumato.runtime import require

Result = TypeVar("Result")

_SECONDS = 5.0  # between two looks at the meters


def measure(
    work: Callable[[], Result],
    *,
    region: str | None = None,
    provider: str | None = None,
    intensity: float | None = None,
    pue: float | None = None,
) -> tuple[Result, Estimate]:
    """Call `work`, and measure what the machine draws meanwhile: processors, memory, accelerators.

    codecarbon gives the energy; the grid is looked up as in `estimate`. Where a machine has no meter, as most virtual
    ones, codecarbon goes by its load. Raises `MissingExtra` without codecarbon and `InvalidRequest` for an unknown
    grid, both before the call.
    """
    grid, share = intensity_constant(region, provider, intensity), pue_constant(pue)
    codecarbon: Any = require("codecarbon", extra="emissions")
    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    tracker = codecarbon.OfflineEmissionsTracker(
        country_iso_code="USA",  # it wants one; its own emissions are not used
        measure_power_secs=_SECONDS,
        tracking_mode="machine",
        save_to_file=False,
        save_to_api=False,
        save_to_logger=False,
        save_to_prometheus=False,
        save_to_logfire=False,
        allow_multiple_runs=True,
        log_level="error",
    )
    tracker.start()
    try:
        result = work()
    finally:
        tracker.stop()
    data = tracker.final_emissions_data
    return result, Estimate(
        hardware=data.cpu_model + (f" and {data.gpu_model}" if data.gpu_count else ""),
        count=1.0,
        hours=data.duration / 3600.0,
        power=None,
        device_kwh=float(data.energy_consumed),
        pue=share,
        intensity=grid,
        method=f"measured by codecarbon {data.codecarbon_version}: the machine, by its load where it has no meter",
    )
