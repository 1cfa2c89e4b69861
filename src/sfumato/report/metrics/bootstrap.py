"""How far a number would have varied with other prompts: intervals by resampling (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import InvalidRequest

Statistic = Callable[[NDArray[np.intp]], float]
"""A number about the pictures at some places (a place may come several times)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with the interval it lies in at `level`, from so many `resamples` (0: no interval was asked for)."""

    value: float
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    resamples: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


def estimate(statistic: Statistic, count: int, *, resamples: int = 200, level: float = 0.95, seed: int = 0) -> Estimate:
    """`statistic` of all `count` pictures, with an interval from that many resamples with replacement.

    Drawn again, a set has fewer different pictures, which moves distances such as FID upwards (Fréchet, by about as
    much as halving the set). So the resamples give the width alone: their quantiles, moved to have their mean at the
    number itself. Raises `InvalidRequest` for no pictures, a single resample, or a level outside (0, 1).
    """
    if count < 1:
        raise InvalidRequest("nothing to estimate from: there are no pictures")
    if resamples < 0 or resamples == 1 or not 0.0 < level < 1.0:
        raise InvalidRequest(f"{resamples} resamples at level {level:g}: use 0, or two or more, at a level below 1")
    value = statistic(np.arange(count))
    if resamples == 0 or count == 1:
        return Estimate(value=value, level=level)
    random = np.random.RandomState(seed)  # its numbers are the same in every version of NumPy
    found = np.array([statistic(random.randint(0, count, count)) for _ in range(resamples)])
    low, high = np.quantile(found, ((1 - level) / 2, (1 + level) / 2)) + (value - found.mean())
    return Estimate(value=value, low=float(low), high=float(high), level=level, resamples=resamples)
