"""The Kullback–Leibler divergence that keeps a latent near a unit Gaussian."""

from __future__ import annotations

from torch import Tensor


def kl_to_unit_gaussian(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)) of each element, in nats (Kingma & Welling 2013, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
