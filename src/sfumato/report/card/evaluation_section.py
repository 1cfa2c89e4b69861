"""What `sfumato evaluate` found, as far as a card shows it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.errors import InvalidConfig, InvalidRequest
from sfumato.json_files import read_object

SCORES = "scores.json"
PLOTS = ("curves.png", "curves.svg")
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
    """Points measured by one protocol. `level` is that of the intervals, `basis` says what the numbers rest on, a
    sentence each, and `models` are the hashes of the weights that were judged, as far as they were noted."""

    protocol: str
    level: float | None
    points: tuple[EvaluatedPoint, ...]
    basis: tuple[str, ...] = ()
    models: frozenset[str] = frozenset()


def read_evaluation(path: Path) -> Evaluation:
    """The `scores.json` of an evaluation, or the folder it is in. Raises `InvalidRequest` or `InvalidConfig`."""
    file = path / SCORES if path.is_dir() else path
    if not file.exists():
        raise InvalidRequest(f"{file} isn't there: `sfumato evaluate score` writes it")
    values = read_object(file)
    cells = values.get("cells")
    if not isinstance(cells, list) or not cells or not all(isinstance(cell, dict) for cell in cells):
        raise InvalidConfig(f"{file} has no cells: give the {SCORES} that `sfumato evaluate score` wrote")
    level = values.get("level")
    return Evaluation(
        protocol=str(values.get("protocol") or "a protocol the file doesn't name"),
        level=level if isinstance(level, float) else None,
        points=tuple(_point(cell, f"{file}: cell {number}") for number, cell in enumerate(cells, start=1)),
        basis=tuple(_basis(values)),
        models=frozenset(
            str(made["model_sha256"]) for made in _fields(values, "made_with").values() if _has(made, "model_sha256")
        ),
    )


def evaluation_in(folder: Path) -> tuple[Evaluation | None, str | None]:
    """The evaluation that a model's folder brings (scores.json), and the name of its picture (curves.png or .svg).

    A picture without its scores is no evaluation's. Raises as `read_evaluation` does.
    """
    if not (folder / SCORES).is_file():
        return None, None
    return read_evaluation(folder), next((name for name in PLOTS if (folder / name).is_file()), None)


def _basis(values: Mapping[str, Any]) -> Iterator[str]:
    """Prompts, reference and networks with their hashes, then the protocol's own notes."""
    run, reference, notes = _fields(values, "run"), _fields(values, "reference"), values.get("notes")
    if _has(run, "prompts", "prompts_sha256"):
        seed = f"; prompt i has seed {run['seed']} + i" if _has(run, "seed") else ""
        yield f"{_count(run['prompts'], 'prompt')}, in a list of SHA-256 `{run['prompts_sha256']}`{seed}."
    if _has(reference, "pictures", "sha256"):
        yield f"Distances are to {_count(reference['pictures'], 'picture')} of SHA-256 `{reference['sha256']}`."
    networks = values.get("networks")
    for network in networks if isinstance(networks, list) else ():
        if _has(network, "name", "file", "sha256"):
            yield f"Judged by {network['name']}: {network['file']}, SHA-256 `{network['sha256']}`."
    if widths := _fields(values, "dimensions"):
        yield f"Features: {', '.join(f'{width} of {space}' for space, width in widths.items())}."
    yield from map(str, notes if isinstance(notes, list) else ())


def _fields(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _has(values: Any, *names: str) -> bool:
    return isinstance(values, dict) and all(values.get(name) is not None for name in names)


def _count(number: Any, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _point(cell: Mapping[str, Any], where: str) -> EvaluatedPoint:
    scores, pictures = cell.get("scores"), cell.get("pictures")
    if not isinstance(scores, dict) or not scores:
        raise InvalidConfig(f"{where} has no scores")
    return EvaluatedPoint(
        pictures=pictures if isinstance(pictures, int) else None,
        settings={title: _shown(cell[name]) for name, title in _SETTINGS.items() if cell.get(name) is not None},
        metrics={name: _measured(value, f"{where}, {name}") for name, value in scores.items()},
    )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _measured(value: Any, where: str) -> Measured:
    fields = value if isinstance(value, dict) else {}
    numbers = {name: fields.get(name) for name in ("value", "low", "high")}
    known = {name: float(number) for name, number in numbers.items() if isinstance(number, int | float)}
    if "value" not in known or not all(map(math.isfinite, known.values())):
        raise InvalidConfig(f"{where} is not a number")
    return Measured(**known)
