"""What a training run's folder says of the model it trained: the facts its card begins with."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.errors import InvalidConfig, InvalidRequest
from sfumato.json_files import read_text
from sfumato.report.card.card_facts import CardFacts, EmissionFacts, TrainingStage
from sfumato.report.emissions.emission_tables import find_hardware
from sfumato.train.logs.compute_log import Session, read_sessions
from sfumato.train.run_folder import CONFIG


def facts_of_run(folder: Path, *, name: str | None = None, region: str | None = None) -> CardFacts:
    """The stage that the run in `folder` was, the hours it noted, and, where `region` is a grid we know and its device
    is in our table, what it emitted. Everything else stays unknown: add it with `dataclasses.replace`, or in the
    card.toml that `write_card` leaves. Raises `InvalidConfig` or `ModelNotFound` for a folder of something else.
    """
    path = folder / CONFIG
    try:
        config = tomllib.loads(read_text(path))
    except InvalidConfig:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{path} is not TOML: {error}") from error
    sessions = read_sessions(folder)
    run = _table(config, "run")
    steps = max((session.last_step for session in sessions), default=_whole(run, "steps"))
    hours = sum(session.seconds for session in sessions) / 3600.0 if sessions else None
    stage = TrainingStage(
        name=name or folder.resolve().name,
        start=next((session.start for session in sessions if session.start), None),
        steps=steps,
        batch=_whole(run, "batch"),
        text_dropped=_number(config, "caption_dropout"),
        hours=None if hours is None else round(hours, 3),
    )
    return CardFacts(name=name, training=(stage,), emissions=_emissions(sessions, region))


def _emissions(sessions: tuple[Session, ...], region: str | None) -> EmissionFacts | None:
    """None where the sessions were on devices of several kinds, or of one nobody has a figure for."""
    kinds = {(session.device, session.devices) for session in sessions}
    if len(kinds) != 1:
        return None
    ((device, count),) = kinds
    try:
        hardware = find_hardware(device).name
    except InvalidRequest:
        return None
    hours = round(sum(session.seconds for session in sessions) / 3600.0, 3)
    return EmissionFacts(hardware=hardware, count=count, hours=hours, region=region)


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _whole(values: Mapping[str, Any], name: str) -> int | None:
    found = values.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _number(values: Mapping[str, Any], name: str) -> float | None:
    found = values.get(name)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
