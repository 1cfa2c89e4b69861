"""Structural similarity of two pictures (Wang et al. 2004)."""

from __future__ import annotations

import numpy as np

from sfumato.errors import InvalidRequest
from sfumato.pictures.pixels import Pixels
from sfumato.report.metrics.feature_sets import Floats

_RADIUS, _SIGMA = 5, 1.5  # the paper's 11×11 window
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(a: Pixels, b: Pixels) -> float:
    """Mean SSIM of two pictures (H, W, 3), uint8: 1 where they are equal.

    Each channel alone, windows that lie within the picture only, as in the authors' code. `InvalidRequest` for two
    sizes, or pictures smaller than the window.
    """
    if a.shape != b.shape:
        raise InvalidRequest(f"pictures of shapes {a.shape} and {b.shape} can't be compared: give two of one size")
    if min(a.shape[:2]) <= 2 * _RADIUS:
        raise InvalidRequest(f"a picture of {a.shape[1]}×{a.shape[0]} pixels is smaller than SSIM's window of 11×11")
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return float((alike / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))).mean())


def _blurred(picture: Floats) -> Floats:
    """(H, W, 3) → (H - 10, W - 10, 3): the window's weighted mean at each place."""
    distance = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-(distance**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(picture, len(weights), axis=axis)
        picture = windows @ weights
    return picture
