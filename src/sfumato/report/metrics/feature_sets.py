"""What every distance between two sets of features asks of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import InvalidRequest

Floats = NDArray[np.float64]


def feature_set(values: NDArray[Any], what: str = "features") -> Floats:
    """Take `values` (N, D) as float64. Raises `InvalidRequest` for fewer than two rows, another shape, or numbers that
    are none."""
    features = np.asarray(values, dtype=np.float64)
    if features.ndim != 2 or features.shape[1] == 0:
        raise InvalidRequest(f"{what} must be rows of features, not of shape {features.shape}")
    if len(features) < 2:
        raise InvalidRequest(f"{what}: a distribution can't be judged by {len(features)} picture(s): give two or more")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise InvalidRequest(f"{what}: picture {row} has a feature that is not a finite number: take it out")
    return features


def same_width(a: Floats, b: Floats) -> None:
    """Raise `InvalidRequest` where two sets come from different networks."""
    if a.shape[-1] != b.shape[-1]:
        raise InvalidRequest(
            f"features of {a.shape[-1]} and of {b.shape[-1]} numbers can't be compared: use one network for both"
        )


def unit_rows(embeddings: Floats) -> Floats:
    """Scale each row (N, D) to length 1. `InvalidRequest` for one of zeros."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not lengths.all():
        raise InvalidRequest("an embedding is all zeros: the network or the picture is damaged")
    unit: Floats = embeddings / lengths
    return unit
