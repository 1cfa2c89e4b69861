"""Fréchet distance between two sets of features (Heusel et al. 2017; FID where the network is Inception), and its
limit for infinitely many pictures (Chong & Forsyth 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import InvalidRequest
from sfumato.report.metrics.feature_sets import Floats, feature_set, same_width

_ROUNDING = 1e-3  # how negative, as a part of the largest, an eigenvalue may be: others store theirs in float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gaussian:
    """Mean (D,) of a set of features, and a factor F (any, D) of its covariance: FᵀF, the sample's (by N - 1).

    The factor of few pictures is their centred features themselves, so no matrix larger than needed is taken apart.
    """

    mean: Floats
    factor: Floats

    @classmethod
    def of(cls, features: NDArray[Any]) -> Self:
        """Fit to rows of features (N, D)."""
        rows = feature_set(features)
        mean = rows.mean(axis=0)
        centred = (rows - mean) / np.sqrt(len(rows) - 1)
        return cls(mean=mean, factor=centred if len(rows) <= rows.shape[1] else _root(centred.T @ centred))

    @classmethod
    def from_moments(cls, mean: NDArray[Any], covariance: NDArray[Any]) -> Self:
        """Take a mean (D,) and a covariance (D, D), as files of statistics hold them. Raises `InvalidRequest`
        where they don't fit, or aren't finite or symmetric."""
        centre, matrix = (np.asarray(values, dtype=np.float64) for values in (mean, covariance))
        if centre.ndim != 1 or matrix.shape != (len(centre), len(centre)):
            raise InvalidRequest(f"a mean of shape {centre.shape} and a covariance of {matrix.shape} don't fit")
        if not (np.isfinite(centre).all() and np.isfinite(matrix).all()):
            raise InvalidRequest("the reference statistics hold numbers that are not finite: make them again")
        if not np.allclose(matrix, matrix.T, rtol=1e-5, atol=1e-8 * float(np.abs(matrix).max())):
            raise InvalidRequest("the reference covariance is not symmetric: make the statistics again")
        return cls(mean=centre, factor=_root((matrix + matrix.T) / 2))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁Σ₂)^½.

    With Σ = FᵀF the last trace is the sum of the singular values of F₁F₂ᵀ: nothing is squared on the way, so singular
    covariances (fewer pictures than features) need no ε on their diagonal, which `scipy.linalg.sqrtm` does.
    """
    same_width(a.mean, b.mean)
    shared = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    spread = np.square(a.factor).sum() + np.square(b.factor).sum()
    return float(max(np.square(a.mean - b.mean).sum() + spread - 2.0 * shared, 0.0))


def frechet_infinity(
    features: NDArray[Any], reference: Gaussian, *, points: int = 15, least: int = 5000, seed: int = 0
) -> float:
    """The distance that infinitely many pictures would have: a line through its values at growing numbers N of
    pictures, read off at 1/N = 0 (Chong & Forsyth 2020, §4; their `points` and `least`).

    Fewer than two `least` pictures are halved instead. It can come out below 0 where the true distance is near 0.
    Raises `InvalidRequest` for fewer than four pictures or two points.
    """
    rows = feature_set(features)
    smallest = least if 2 * least <= len(rows) else len(rows) // 2
    if smallest < 2 or points < 2:
        raise InvalidRequest(f"{len(rows)} pictures are too few to extrapolate from: give four or more")
    random = np.random.RandomState(seed)  # its numbers are the same in every version of NumPy
    sizes = np.unique(np.linspace(smallest, len(rows), points).astype(int))
    found = [frechet_distance(Gaussian.of(rows[random.permutation(len(rows))[:size]]), reference) for size in sizes]
    _, at_infinity = np.polyfit(1.0 / sizes, found, 1)
    return float(at_infinity)


def _root(covariance: Floats) -> Floats:
    """A factor F with FᵀF = Σ. Eigenvalues below 0 by rounding count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    if values[0] < -_ROUNDING * max(float(values[-1]), 0.0):
        raise InvalidRequest("the reference covariance has negative variances: make the statistics again")
    factor: Floats = np.sqrt(np.clip(values, 0.0, None))[:, None] * vectors.T
    return factor
