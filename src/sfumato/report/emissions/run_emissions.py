"""What a training run cost, from the sessions it noted in its folder."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from sfumato.errors import ModelNotFound
from sfumato.report.emissions.estimate import Estimate, estimate
from sfumato.train.logs.compute_log import read_sessions
from sfumato.train.run_folder import SESSIONS


def estimate_run(
    folder: Path,
    *,
    hardware: str | None = None,
    watts: float | None = None,
    region: str | None = None,
    provider: str | None = None,
    intensity: float | None = None,
    pue: float | None = None,
) -> tuple[Estimate, ...]:
    """An estimate for each kind of device the run in `folder` was computed on; `hardware` or `watts` say what it was.

    Raises `ModelNotFound` where the run noted no time, `InvalidRequest` where its device isn't in the table.
    """
    sessions = read_sessions(folder)
    if not sessions:
        raise ModelNotFound(f"{folder}: no {SESSIONS} there, so nobody knows how long it trained: give --hours instead")
    hours: defaultdict[tuple[str, int], float] = defaultdict(float)
    for session in sessions:
        hours[hardware or session.device, session.devices] += session.seconds / 3600.0
    return tuple(
        estimate(
            hours=spent, hardware=device, count=count, watts=watts,
            region=region, provider=provider, intensity=intensity, pue=pue,
        )
        for (device, count), spent in hours.items()
    )  # fmt: skip
