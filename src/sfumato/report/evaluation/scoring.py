"""Every metric that the networks at hand allow, for every cell of a run, with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import InvalidRequest
from sfumato.files import write_text
from sfumato.report.evaluation.evaluation_plan import Plan, read_run
from sfumato.report.evaluation.feature_cache import cached_features
from sfumato.report.evaluation.prompt_list import PromptList
from sfumato.report.evaluation.reference import Reference
from sfumato.report.evaluation.run_pictures import conditions, read_pictures, seconds
from sfumato.report.features.clip_features import SPACE as CLIP
from sfumato.report.features.clip_features import ClipFeatures
from sfumato.report.features.network import Features, Network
from sfumato.report.features.pickscore_hps import Preference
from sfumato.report.metrics.bootstrap import Estimate, estimate
from sfumato.report.metrics.clip_score import cosines
from sfumato.report.metrics.feature_sets import Floats
from sfumato.report.metrics.fid import Gaussian, frechet_distance, frechet_infinity
from sfumato.report.metrics.kid_cmmd import cmmd, kid
from sfumato.runtime import logger

SCORES = "scores.json"
_VERSION = 1
_LEAST_FOR_INFINITY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How sure one wants to be: resamples for each interval, its level, and the seed of all draws."""

    resamples: int = 100
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """The reference in the spaces of the networks: features where there are pictures, Gaussians for all."""

    features: Features
    gaussians: Mapping[str, Gaussian]


def score_run(
    folder: Path,
    networks: Sequence[Network],
    reference: Reference,
    settings: Settings,
    *,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Score all cells of the run in `folder`, write `scores.json` there and give its content.

    `InvalidRequest` while pictures are missing, or where nothing can be computed.
    """
    plan, prompts = read_run(folder)
    if not networks:
        raise InvalidRequest(
            "nothing to score with: give --efficientnet, --clip FOLDER, --inception FILE or --preference PATH"
        )
    judges = [network for network in networks if isinstance(network, Preference)]
    others = [network for network in networks if not isinstance(network, Preference)]
    check_reference(networks, reference.moments, pictures=bool(reference.pictures))
    references = reference_features(folder, others, reference, on_pictures=on_pictures)
    clip = next((network for network in others if isinstance(network, ClipFeatures)), None)
    texts = clip.texts(prompts.texts) if clip is not None else None
    liked = {judge.name: _liked(folder, plan, prompts, judge, on_pictures) for judge in judges}
    cells, took = [], seconds(folder)
    for number, cell in enumerate(plan.cells):
        pictures = read_pictures(folder, plan, cell)
        scores: dict[str, Estimate] = {}
        if others:
            scores |= score(_features(folder, pictures, others, on_pictures), references, texts, settings)
        for name, values in liked.items():
            scores |= preferences(name, values, number, settings)
        cells.append(
            {
                "name": cell.name,
                "label": cell.label,
                "guidance_scale": cell.guidance_scale,
                "sampler": cell.sampler,
                "steps": cell.steps,
                "pictures": len(pictures),
                "seconds": round(took.get(cell.name, 0.0), 2),
                "scores": {name: value.to_dict() for name, value in scores.items()},
            }
        )
    document = {
        "version": _VERSION,
        "protocol": plan.protocol,
        "notes": list(plan.notes),
        "run": _settings(plan, prompts),
        "made_with": conditions(folder),
        "reference": dict(reference.described),
        "networks": [network.identity.to_dict() for network in networks],
        "dimensions": {space: len(gaussian.mean) for space, gaussian in references.gaussians.items()},
        "resamples": settings.resamples,
        "level": settings.level,
        "cells": cells,
    }
    write_text(folder / SCORES, json.dumps(document, ensure_ascii=False, indent=1) + "\n", overwrite=True)
    return document


def check_reference(networks: Sequence[Network], spaces: Collection[str], *, pictures: bool) -> None:
    """Raise `InvalidRequest` where a reference, statistics of `spaces` or pictures, would be compared with nothing."""
    others = [network for network in networks if not isinstance(network, Preference)]
    if not others and (spaces or pictures):
        raise InvalidRequest(
            "preference scores have no reference: leave it out or add --efficientnet, --clip FOLDER or --inception FILE"
        )
    if not spaces:
        return
    grey = np.full((64, 64, 3), 127, np.uint8)  # a network's spaces are those it answers in
    there = [space for network in others for space in network.features([grey])]
    if unknown := sorted(set(spaces) - set(there)):
        raise InvalidRequest(f"no network here has features {unknown[0]!r}: there are {', '.join(there)}")


def pictures_seen(plan: Plan, networks: Sequence[Network], reference: Reference) -> int:
    """How many pictures `score_run` shows to networks where none is cached: judges of liking see no reference."""
    others = sum(not isinstance(network, Preference) for network in networks)
    return plan.count * len(plan.cells) * len(networks) + len(reference.pictures) * others


def preferences(name: str, liked: Floats, number: int, settings: Settings) -> dict[str, Estimate]:
    """Score cell `number` among cells with scores `liked` (cells, prompts): the mean, and the share of pairs with the
    other cells' pictures of the same prompt in which its own has the higher score (half a pair where they are equal).
    """
    own, others = liked[number], np.delete(liked, number, axis=0)
    found = {f"preference/{name}": _estimated(lambda i: float(own[i].mean()), len(own), settings)}
    if len(others):
        wins = ((own > others) + 0.5 * (own == others)).mean(axis=0)
        found[f"preferred/{name}"] = _estimated(lambda i: float(wins[i].mean()), len(own), settings)
    return found


def _liked(
    folder: Path, plan: Plan, prompts: PromptList, judge: Preference, on_pictures: Callable[[int], None]
) -> Floats:
    """Scores (cells, prompts)."""
    rows = [
        judge.scores(
            cached_features(folder, read_pictures(folder, plan, cell), judge, on_pictures=on_pictures)[judge.space],
            prompts.texts,
        )
        for cell in plan.cells
    ]
    return np.stack(rows)


def reference_features(
    folder: Path,
    networks: Sequence[Network],
    reference: Reference,
    *,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> References:
    """The reference pictures in every network's spaces, cached in `folder`. Raises `InvalidRequest` for a single
    picture."""
    features: Features = {}
    if len(reference.pictures) == 1:
        raise InvalidRequest("the reference is one picture, and no distribution: give the folder of many")
    if reference.pictures:
        features = _features(folder, reference.pictures, networks, on_pictures)
    gaussians = {space: Gaussian.of(rows) for space, rows in features.items()}
    return References(features=features, gaussians={**gaussians, **reference.moments})


def score(
    features: Features, references: References, texts: NDArray[Any] | None, settings: Settings
) -> dict[str, Estimate]:
    """The metrics of one set of pictures: `frechet/SPACE`, `frechet-infinity/SPACE` and `kid/SPACE` for each space with
    a reference, `cmmd` and `clip-score` for CLIP's (texts (N, D) of the N pictures). Raises `InvalidRequest` where
    nothing can be scored."""
    found: dict[str, Estimate] = {}
    for space, rows in features.items():
        gaussian, real = references.gaussians.get(space), references.features.get(space)
        if space == CLIP:
            found |= _clip(rows, real, texts, settings)
            continue
        if gaussian is not None:
            found |= _frechet(space, rows, gaussian, settings)
        if real is not None:
            found[f"kid/{space}"] = _kid(rows, real, settings)
    if not found:
        raise InvalidRequest("nothing could be scored: give --reference FOLDER, or --clip FOLDER for the CLIP score")
    return found


def _clip(
    rows: NDArray[Any], real: NDArray[Any] | None, texts: NDArray[Any] | None, settings: Settings
) -> dict[str, Estimate]:
    found = {}
    if texts is not None:
        agreement = cosines(rows, texts)
        found["clip-score"] = _estimated(lambda i: float(agreement[i].mean()), len(rows), settings)
    if real is not None:
        found["cmmd"] = _estimated(lambda i: cmmd(rows[i], real), len(rows), settings)
    return found


def _frechet(space: str, rows: NDArray[Any], gaussian: Gaussian, settings: Settings) -> dict[str, Estimate]:
    if len(rows) <= rows.shape[1]:
        logger.warning(
            "%s: %d pictures are no more than the %d features: its Fréchet distance is biased far upwards",
            space,
            len(rows),
            rows.shape[1],
        )
    found = {
        f"frechet/{space}": _estimated(lambda i: frechet_distance(Gaussian.of(rows[i]), gaussian), len(rows), settings)
    }
    if len(rows) >= _LEAST_FOR_INFINITY:
        found[f"frechet-infinity/{space}"] = Estimate(value=frechet_infinity(rows, gaussian, seed=settings.seed))
    return found


def _kid(rows: NDArray[Any], real: NDArray[Any], settings: Settings) -> Estimate:
    """torch-fidelity's mean over 100 subsets; the interval's resamples have 10, whose mean is the same."""
    whole = kid(rows, real).mean
    around = _estimated(lambda i: kid(rows[i], real, subsets=10).mean, len(rows), settings)
    shift = whole - around.value
    low, high = (None if end is None else end + shift for end in (around.low, around.high))
    return Estimate(value=whole, low=low, high=high, level=around.level, resamples=around.resamples)


def _estimated(statistic: Callable[[NDArray[np.intp]], float], count: int, settings: Settings) -> Estimate:
    return estimate(statistic, count, resamples=settings.resamples, level=settings.level, seed=settings.seed)


def _features(
    folder: Path, pictures: Sequence[Any], networks: Sequence[Network], on_pictures: Callable[[int], None]
) -> Features:
    found: dict[str, NDArray[np.float32]] = {}
    for network in networks:
        found |= cached_features(folder, pictures, network, on_pictures=on_pictures)
    return found


def _settings(plan: Plan, prompts: PromptList) -> dict[str, Any]:
    return {
        "prompts": len(prompts.prompts),
        "prompts_sha256": plan.prompts_sha256,
        "seed": plan.seed,
        "side": plan.side,
        "profile": plan.profile,
    }


def read_scores(folder: Path) -> dict[str, Any]:
    """The scores of the run in `folder`. `InvalidRequest` where there are none."""
    path = folder / SCORES
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidRequest(f"{folder} has no scores yet: compute them with `sfumato evaluate score`") from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} can't be read ({error}): score again") from error
    if not isinstance(values, dict) or values.get("version") != _VERSION:
        raise InvalidRequest(f"{path} is of another version of sfumato: score again")
    return values
