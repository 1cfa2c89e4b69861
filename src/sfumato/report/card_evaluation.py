"""What `sfumato evaluate` found, as far as a card shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.errors import InvalidConfig
from sfumato.json_files import read_object

SCORES = "scores.json"
_SETTINGS = {"label": "model", "sampler": "sampler", "steps": "steps", "guidance_scale": "guidance"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A metric's value, with its interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({self.low:.4g} to {self.high:.4g})"
        return f"{self.value:.4g}{interval}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedPoint:
    """One setting, on how many pictures, and its metrics by name."""

    pictures: int | None
    settings: Mapping[str, str]
    metrics: Mapping[str, Measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Points measured by one protocol; `level` is that of the intervals."""

    protocol: str
    level: float | None
    points: tuple[EvaluatedPoint, ...]


def read_evaluation(path: Path) -> Evaluation:
    """The `scores.json` of an evaluation, or the folder it is in. Raises `InvalidConfig` or `ModelNotFound`."""
    file = path / SCORES if path.is_dir() else path
    values = read_object(file)
    cells = values.get("cells")
    if not isinstance(cells, list) or not cells or not all(isinstance(cell, dict) for cell in cells):
        raise InvalidConfig(f"{file} has no cells: give the {SCORES} that `sfumato evaluate score` wrote")
    level = values.get("level")
    return Evaluation(
        protocol=str(values.get("protocol") or "a protocol the file doesn't name"),
        level=level if isinstance(level, float) else None,
        points=tuple(_point(cell, f"{file}: cell {number}") for number, cell in enumerate(cells, start=1)),
    )


def _point(cell: Mapping[str, Any], where: str) -> EvaluatedPoint:
    scores, pictures = cell.get("scores"), cell.get("pictures")
    if not isinstance(scores, dict) or not scores:
        raise InvalidConfig(f"{where} has no scores")
    return EvaluatedPoint(
        pictures=pictures if isinstance(pictures, int) else None,
        settings={title: str(cell[name]) for name, title in _SETTINGS.items() if cell.get(name) is not None},
        metrics={name: _measured(value, f"{where}, {name}") for name, value in scores.items()},
    )


def _measured(value: Any, where: str) -> Measured:
    fields = value if isinstance(value, dict) else {}
    numbers = {name: fields.get(name) for name in ("value", "low", "high")}
    known = {name: float(number) for name, number in numbers.items() if isinstance(number, int | float)}
    if "value" not in known or not all(map(math.isfinite, known.values())):
        raise InvalidConfig(f"{where} is not a number")
    return Measured(**known)
