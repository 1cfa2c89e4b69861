"""From scores to curves: the points of each model, sampler and number of steps, by growing guidance scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.errors import InvalidRequest

# What a curve is drawn from, the first there is: FID as most programs give it, then what stands in.
DISTANCES = (
    "frechet/inception/pytorch-fid",
    "frechet/inception/torch-fidelity",
    "frechet/inception/clean-fid",
    "frechet/efficientnet-lite0",
    "kid/efficientnet-lite0",
    "cmmd",
)
AGREEMENT = "clip-score"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A cell as a point, each coordinate as (value, low, high)."""

    guidance_scale: float
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def available(document: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that every cell has."""
    cells = document["cells"]
    return [name for name in cells[0]["scores"] if all(name in cell["scores"] for cell in cells)] if cells else []


def drawable(document: Mapping[str, Any]) -> bool:
    """Whether there is a curve to draw: the CLIP score, and a distance that `choose_distance` finds."""
    there = available(document)
    return AGREEMENT in there and any(name in there for name in DISTANCES)


def choose_distance(document: Mapping[str, Any]) -> str:
    """The distance to draw. `InvalidRequest` where there is none."""
    there = available(document)
    for name in DISTANCES:
        if name in there:
            return name
    raise InvalidRequest("the scores hold no distance to a reference: score again with --reference FOLDER")


def curves(document: Mapping[str, Any], x: str, y: str) -> dict[str, list[CurvePoint]]:
    """The curves by name; only what differs is in the names. `InvalidRequest` for a metric that isn't there."""
    for name in (x, y):
        if name not in available(document):
            raise InvalidRequest(f"the scores have no {name!r}: there are {', '.join(available(document)) or 'none'}")
    cells = document["cells"]
    differing = [key for key in ("sampler", "steps") if len({cell[key] for cell in cells}) > 1]
    found: dict[str, list[CurvePoint]] = {}
    for cell in cells:
        name = " ".join([cell["label"], *(_word(key, cell[key]) for key in differing)])
        scores = cell["scores"]
        point = CurvePoint(guidance_scale=cell["guidance_scale"], x=_ends(scores[x]), y=_ends(scores[y]))
        found.setdefault(name, []).append(point)
    return {name: sorted(points, key=lambda point: point.guidance_scale) for name, points in found.items()}


_KINDS = {
    "frechet": "Fréchet distance",
    "frechet-infinity": "Fréchet distance at N → ∞",
    "kid": "KID",
    "cmmd": "CMMD",
    "clip-score": "CLIP score",
    "preference": "Preference score",
    "preferred": "Preferred to other settings",
}
_FID = {"frechet": "FID", "frechet-infinity": "FID∞"}


def title(metric: str) -> str:
    """A metric's name for people: what it is and on which features."""
    kind, _, space = metric.partition("/")
    word = _KINDS.get(kind, kind)
    if space.startswith("inception/"):
        return f"{_FID.get(kind, word)} ({space.removeprefix('inception/')})"
    return f"{word} ({space})" if space else word


def _word(key: str, value: Any) -> str:
    return f"{value} steps" if key == "steps" else str(value)


def _ends(score: Mapping[str, Any]) -> tuple[float, float, float]:
    value = float(score["value"])
    low, high = (value if score[end] is None else float(score[end]) for end in ("low", "high"))
    return value, low, high


def table(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]], dict[str, str]]:
    """Heads and rows of all scores, as texts, and apart from them the settings that all of several cells share."""
    names, cells = available(document), document["cells"]
    settings = {
        "model": [str(cell["label"]) for cell in cells],
        "guidance": [f"{cell['guidance_scale']:g}" for cell in cells],
        "sampler": [str(cell["sampler"]) for cell in cells],
        "steps": [str(cell["steps"]) for cell in cells],
        "pictures": [str(cell["pictures"]) for cell in cells],
    }
    shared = {name: column[0] for name, column in settings.items() if len(cells) > 1 and len(set(column)) == 1}
    columns = {name: column for name, column in settings.items() if name not in shared}
    columns |= {title(name): [shown(cell["scores"][name]) for cell in cells] for name in names}
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)], shared


def shown(score: Mapping[str, Any]) -> str:
    """A number with its interval, to four digits."""
    value, low, high = _ends(score)
    return f"{value:.4g}" if score["low"] is None else f"{value:.4g} [{low:.4g}, {high:.4g}]"
