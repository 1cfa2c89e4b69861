"""How long a run was computed, and on what: `sessions.jsonl` beside metrics.jsonl, which must not depend on time.

A line says how far one session (one call of `train`) has come; the last line of a session counts, so that what a crash
loses is the time since the checkpoint before.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sfumato.errors import DataError
from sfumato.train.run_folder import SESSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One stretch of training: `devices` devices of the kind `device` for `seconds`, from one step to another.

    `start` says what the run's first weights are from, None where nothing is known.
    """

    started: str
    seconds: float
    device: str
    devices: int
    first_step: int
    last_step: int
    start: str | None = None


class SessionLog:
    """Appends this session's lines to the file in a run's `folder`. `device` is `runtime.processor_name`'s."""

    def __init__(self, folder: Path, *, device: str, devices: int, step: int, start: str | None = None) -> None:
        self._start = start
        self._path, self._device, self._devices, self._first = folder / SESSIONS, device, devices, step
        self._started = datetime.now(UTC).isoformat(timespec="microseconds")
        self._clock = time.monotonic()

    def write(self, step: int) -> None:
        """Note that the session has come to `step`: with each checkpoint, at the end. Without a step it is none."""
        if step == self._first:
            return
        session = Session(
            started=self._started,
            seconds=round(time.monotonic() - self._clock, 3),
            device=self._device,
            devices=self._devices,
            first_step=self._first,
            last_step=step,
            start=self._start,
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(session)) + "\n")


def read_sessions(folder: Path) -> tuple[Session, ...]:
    """The sessions of the run in `folder`, in order; none where it has no such file. Lines cut off by a crash are left
    out. Raises `DataError` for a line of something else."""
    path = folder / SESSIONS
    if not path.is_file():
        return ()
    found: dict[str, Session] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(line)
        except ValueError:  # cut off by a crash
            continue
        try:
            session = Session(**values)
            numbers = (session.seconds, session.devices, session.first_step, session.last_step)
            sensible = all(isinstance(value, int | float) and value >= 0 for value in numbers) and session.devices > 0
        except TypeError:
            sensible = False
        if not sensible:
            raise DataError(f"{path}: line {number} is not a training session: remove it")
        found[session.started] = session
    return tuple(found.values())
