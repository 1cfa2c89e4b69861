"""The run's numbers, one JSON object a line; a resumed run's file equals that of one never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sfumato.files import write_text
from sfumato.train.run_folder import METRICS


class MetricsLog:
    """Appends to `path`, after dropping lines of steps beyond `after`: those will be computed again."""

    def __init__(self, path: Path, *, after: int) -> None:
        if path.exists():
            write_text(path, "".join(line + "\n" for line in _lines_up_to(path, after)), overwrite=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, float]) -> None:
        """Append one line; `values` has the step."""
        self._file.write(json.dumps(dict(values)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def last_metrics(run: Path) -> dict[str, float]:
    """The newest number of each name in a run's metrics; none where it has no such file."""
    values: dict[str, float] = {}
    path = run / METRICS
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            values |= json.loads(line)
    return values


def _lines_up_to(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:  # cut off by a crash
            continue
    return kept
