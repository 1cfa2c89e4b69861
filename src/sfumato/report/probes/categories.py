"""Scores by what the prompts have in common: any of their fields, a language, a kind of scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import InvalidRequest
from sfumato.report.evaluation.prompt_list import Prompt
from sfumato.report.evaluation.scoring import Settings
from sfumato.report.metrics.bootstrap import Estimate, estimate


def by_category(
    prompts: Sequence[Prompt], values: NDArray[np.float64], field: str, settings: Settings
) -> dict[str, tuple[Estimate, int]]:
    """Mean of a score (N,) within each value of a field, with its interval and the number of pictures, in the order in
    which the categories first come. A field that holds a list counts for each of its items.

    `InvalidRequest` where no prompt has the field.
    """
    members: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        if field in prompt.fields:
            for name in _names(prompt.fields[field]):
                members.setdefault(name, []).append(index)
    if not members:
        known = sorted({name for prompt in prompts for name in prompt.fields})
        raise InvalidRequest(f"no prompt has a field {field!r}: there are {', '.join(known) or 'none'}")
    return {name: (_mean(values[places], settings), len(places)) for name, places in members.items()}


def _names(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for item in value for name in _names(item)]
    if isinstance(value, Mapping):
        return _names(value.get("label", "unnamed"))
    return [str(value)]


def _mean(values: NDArray[np.float64], settings: Settings) -> Estimate:
    return estimate(
        lambda i: float(values[i].mean()),
        len(values),
        resamples=settings.resamples,
        level=settings.level,
        seed=settings.seed,
    )
