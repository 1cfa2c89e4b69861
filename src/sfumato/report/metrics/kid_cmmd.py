"""Maximum mean discrepancy (MMD, Gretton et al. 2012) between two sets of features: KID and CMMD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import InvalidRequest
from sfumato.report.metrics.feature_sets import Floats, feature_set, same_width, unit_rows

KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 100, 1000, 2020  # torch-fidelity's, the seed too: the same subsets are drawn
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
_ROWS = 1024  # of a kernel matrix at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Kid:
    """Mean over the subsets, their standard deviation, and how many pictures a subset has."""

    mean: float
    deviation: float
    subset_size: int


def kid(
    features: NDArray[Any],
    reference: NDArray[Any],
    *,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = KID_SEED,
) -> Kid:
    """Kernel inception distance (Bińkowski et al. 2018): the unbiased MMD² with the kernel (x·y / D + 1)³, averaged
    over random subsets. Unlike the Fréchet distance it expects the same of few pictures as of many.

    A subset larger than a set is cut to it. `InvalidRequest` for fewer than two pictures.
    """
    x, y = feature_set(features), feature_set(reference, "reference features")
    same_width(x, y)
    if subsets < 1 or subset_size < 2:
        raise InvalidRequest(f"{subsets} subsets of {subset_size} pictures: take one or more, of two or more")
    size = min(subset_size, len(x), len(y))
    random = np.random.RandomState(seed)  # its numbers are the same in every version of NumPy
    found = [
        _unbiased_mmd2(x[random.choice(len(x), size, replace=False)], y[random.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    ]
    return Kid(mean=float(np.mean(found)), deviation=float(np.std(found)), subset_size=size)


def cmmd(embeddings: NDArray[Any], reference: NDArray[Any]) -> float:
    """CLIP-MMD (Jayasumana et al. 2024): 1000 · MMD² with a Gaussian kernel of σ = 10 between CLIP embeddings.

    Embeddings are divided by their lengths here. As in the authors' code the estimator is the biased one, all pairs of
    a set included, and so never negative.
    """
    x, y = (
        unit_rows(feature_set(values, what)) for values, what in ((embeddings, "embeddings"), (reference, "reference"))
    )
    same_width(x, y)
    return float(CMMD_SCALE * (_gaussian_mean(x, x) + _gaussian_mean(y, y) - 2.0 * _gaussian_mean(x, y)))


def _unbiased_mmd2(x: Floats, y: Floats) -> float:
    """Two sets of the same size; the mean over distinct pairs within a set, over all pairs between."""
    size = len(x)
    within = sum((kernel.sum() - np.trace(kernel)) for kernel in (_cubic(x, x), _cubic(y, y)))
    return float(within / (size * (size - 1)) - 2.0 * _cubic(x, y).mean())


def _cubic(x: Floats, y: Floats) -> Floats:
    kernel: Floats = (x @ y.T / x.shape[1] + 1.0) ** 3
    return kernel


def _gaussian_mean(x: Floats, y: Floats) -> float:
    """Mean of the kernel over all pairs, a block of rows at a time."""
    total, y_lengths = 0.0, np.square(y).sum(axis=1)
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        squared = np.square(rows).sum(axis=1)[:, None] + y_lengths - 2.0 * rows @ y.T
        total += float(np.exp(-np.clip(squared, 0.0, None) / (2.0 * CMMD_SIGMA**2)).sum())
    return total / (len(x) * len(y))
