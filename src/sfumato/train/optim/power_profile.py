"""Averages of the weights whose length grows with the run: after step T, weights of step t count as t^gamma.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.1 and appendix C.
The length is given as sigma_rel, the standard deviation of t over T under those weights.
"""

from __future__ import annotations

import math

from sfumato.errors import InvalidConfig

WIDEST = 12.0**-0.5  # the sigma_rel of the plain mean over all steps, whose gamma is 0


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the average of that relative width: the largest γ with σ² = (γ + 1) / ((γ + 2)² (γ + 3)).

    The largest root of γ³ + 7γ² + (16 - σ⁻²)γ + 12 - σ⁻² (algorithm 2), in closed form by Viète: all three are real
    where the widest isn't exceeded. `InvalidConfig` outside of 0 < sigma_rel < `WIDEST`.
    """
    if not 0.0 < sigma_rel < WIDEST:
        raise InvalidConfig(f"sigma_rel = {sigma_rel} must be above 0 and below {WIDEST:.4f}")
    t = sigma_rel**-2
    radius = math.sqrt((t + 1.0 / 3.0) / 3.0)
    angle = math.acos(-(2.0 / 27.0 + 4.0 / 3.0 * t) / (2.0 * radius**3))
    return 2.0 * radius * math.cos(angle / 3.0) - 7.0 / 3.0


def power_decay(step: int, gamma: float) -> float:
    """What step number `step` (from 1) leaves of the average before it: (1 - 1/t)^(γ+1). The first leaves nothing."""
    return math.pow(1.0 - 1.0 / step, gamma + 1.0)
