"""Quantiles of the symmetric Beta distribution, which Python's standard library lacks."""

from __future__ import annotations

import math

_TOLERANCE = 1e-16
_TINY = 1e-300


def beta_quantile(p: float, shape: float) -> float:
    """x with P(X ≤ x) = p for X ~ Beta(shape, shape), `shape` > ½, p in [0, 1]; relative error about 1e-12.

    Newton's method in θ, x = sin²θ, where the density 2 (sin θ cos θ)^(2·shape − 1) / B is bounded.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"a probability is from 0 to 1, not {p}")
    if p in (0.0, 1.0):
        return p
    if p > 0.5:
        return 1.0 - beta_quantile(1.0 - p, shape)
    norm = math.exp(2.0 * math.lgamma(shape) - math.lgamma(2.0 * shape))
    # the distribution function near 0 is x^shape / (shape · B)
    theta = math.asin(min(1.0, math.sqrt(math.pow(p * shape * norm, 1.0 / shape))))
    low, high = 0.0, math.pi / 4.0
    theta = min(theta, high)
    for _ in range(60):
        error = _regularized(math.sin(theta) ** 2, shape, norm) - p
        low, high = (theta, high) if error < 0.0 else (low, theta)
        density = 2.0 * (math.sin(theta) * math.cos(theta)) ** (2.0 * shape - 1.0) / norm
        proposal = theta - error / density
        step = (proposal if low < proposal < high else 0.5 * (low + high)) - theta
        theta += step
        if abs(step) <= 1e-15 * theta:
            break
    return math.sin(theta) ** 2


def _regularized(x: float, shape: float, norm: float) -> float:
    """P(X ≤ x) for x ≤ ½ by the continued fraction of the incomplete beta function (Abramowitz & Stegun 26.5.8),
    evaluated with Lentz's method."""
    front = math.pow(x * (1.0 - x), shape) / (shape * norm)
    numerator, denominator = 1.0, 1.0 - 2.0 * shape * x / (shape + 1.0)
    denominator = 1.0 / (denominator or _TINY)
    fraction = denominator
    for m in range(1, 300):
        even = m * (shape - m) * x / ((shape + 2 * m - 1) * (shape + 2 * m))
        odd = -(shape + m) * (2.0 * shape + m) * x / ((shape + 2 * m) * (shape + 2 * m + 1))
        for term in (even, odd):
            denominator = 1.0 / ((1.0 + term * denominator) or _TINY)
            numerator = (1.0 + term / numerator) or _TINY
            change = numerator * denominator
            fraction *= change
        if abs(change - 1.0) < _TOLERANCE:
            break
    return front * fraction
