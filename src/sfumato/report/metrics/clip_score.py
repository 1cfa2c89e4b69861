"""How well pictures agree with their texts, or with each other, in an embedding: cosines (Hessel et al. 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import InvalidRequest
from sfumato.report.metrics.feature_sets import Floats


def cosines(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Cosine of each pair of rows (N, D) → (N,), in [-1, 1].

    The mean over pictures and their prompts is the CLIP score as Stable Diffusion's curves show it (about 0.26);
    torchmetrics gives 100 times that, and 0 for what is below. `InvalidRequest` where the rows don't pair up.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 2 or first.shape != second.shape or not len(first):
        raise InvalidRequest(
            f"embeddings of shapes {first.shape} and {second.shape} don't pair up: give one text for each picture"
        )
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise InvalidRequest("an embedding is zero or not finite: the network or a picture is damaged")
    found: Floats = (first * second).sum(axis=1) / lengths
    return found
