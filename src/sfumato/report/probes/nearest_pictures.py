"""Which training pictures a generated one is nearest to: does a model invent, or remember (Somepalli et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import InvalidRequest
from sfumato.report.metrics.feature_sets import Floats, feature_set, same_width

_ROWS = 512
_USUAL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nearest:
    """For N pictures the indices (N, k) of the nearest training pictures and their cosines (N, k), nearest first.

    `usual` is the cosine that 95 % of the training pictures stay below with the nearest *other* one: a picture above
    it is nearer to a training picture than these are to each other.
    """

    indices: NDArray[np.intp]
    cosines: Floats
    usual: float

    @property
    def copies(self) -> NDArray[np.bool_]:
        """Which pictures look remembered (N,)."""
        found: NDArray[np.bool_] = self.cosines[:, 0] > self.usual
        return found


def nearest(features: NDArray[Any], training: NDArray[Any], count: int = 3) -> Nearest:
    """Compare features (N, D) with those of the training pictures (M, D), M > `count`, by cosine. Raises
    `InvalidRequest` for fewer training pictures."""
    rows, known = feature_set(features), feature_set(training, "training features")
    same_width(rows, known)
    if not 1 <= count < len(known):
        raise InvalidRequest(f"{count} nearest of {len(known)} training pictures: ask for fewer")
    rows, known = _unit(rows), _unit(known)
    indices, cosines = _largest(rows, known, count)
    _, own = _largest(known, known, 2)  # the first is the picture itself
    return Nearest(indices=indices, cosines=cosines, usual=float(np.quantile(own[:, 1], _USUAL)))


def _largest(rows: Floats, known: Floats, count: int) -> tuple[NDArray[np.intp], Floats]:
    indices, cosines = [], []
    for start in range(0, len(rows), _ROWS):
        similar = rows[start : start + _ROWS] @ known.T
        order = np.argsort(-similar, axis=1, kind="stable")[:, :count]
        indices.append(order)
        cosines.append(np.take_along_axis(similar, order, axis=1))
    return np.concatenate(indices), np.concatenate(cosines)


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
