"""What `sfumato evaluate` found, as far as a card shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.errors import InvalidConfig
from sfumato.json_files import read_object

_SETTINGS = ("checkpoint", "sampler", "steps", "guidance_scale")


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
    """One setting, and its metrics by name."""

    settings: Mapping[str, str]
    metrics: Mapping[str, Measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Points measured by one protocol, on `images` pictures each where that is said."""

    protocol: str
    images: int | None
    points: tuple[EvaluatedPoint, ...]


def read_evaluation(path: Path) -> Evaluation:
    """The result file: an object with `protocol`, `images` and `points`, each of settings (`checkpoint`, `sampler`,
    `steps`, `guidance_scale`) and `metrics`: numbers, or objects with `value`, `low` and `high`. Raises
    `InvalidConfig` or `ModelNotFound`."""
    values = read_object(path)
    points = values.get("points")
    if not isinstance(points, list) or not points or not all(isinstance(point, dict) for point in points):
        raise InvalidConfig(f"{path} has no points: give the JSON that `sfumato evaluate` wrote")
    images = values.get("images")
    return Evaluation(
        protocol=str(values.get("protocol") or "a protocol the file doesn't name"),
        images=images if isinstance(images, int) else None,
        points=tuple(_point(point, f"{path}: point {number}") for number, point in enumerate(points, start=1)),
    )


def _point(point: Mapping[str, Any], where: str) -> EvaluatedPoint:
    metrics = point.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        raise InvalidConfig(f"{where} has no metrics")
    return EvaluatedPoint(
        settings={name: str(point[name]) for name in _SETTINGS if point.get(name) is not None},
        metrics={name: _measured(value, f"{where}, {name}") for name, value in metrics.items()},
    )


def _measured(value: Any, where: str) -> Measured:
    fields = value if isinstance(value, dict) else {"value": value}
    numbers = {name: fields.get(name) for name in ("value", "low", "high")}
    known = {name: float(number) for name, number in numbers.items() if isinstance(number, int | float)}
    if "value" not in known or not all(map(math.isfinite, known.values())):
        raise InvalidConfig(f"{where} is not a number")
    return Measured(**known)
