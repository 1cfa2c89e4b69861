"""Brownian paths for the SDE samplers: noise for a step is the path's increment, so finer steps refine it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.diffusion.integration import Noise
from sfumato.diffusion.noise import placed
from sfumato.runtime import require

_DEPTH = 32
_MASK = (1 << 64) - 1


class BrownianPath:
    """One picture's path W over [0, 1], W(0) = 0, in `shape`: a function of the seed alone, whatever is asked before.

    Midpoints are filled in down a binary tree (Gaines & Lyons 1997; Li et al. 2020, "virtual Brownian tree"), each
    with noise seeded by its place, down to an interval of 2⁻³²; within that the path is a straight line.
    """

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self._seed = seed
        self._shape = shape
        self._known: dict[float, Tensor] = {}

    def __call__(self, u: float) -> Tensor:
        """W(u), float32 on the CPU."""
        if u not in self._known:
            # a sampler asks for the ends of the step at hand; more than a few would only cost memory
            while len(self._known) >= 4:
                del self._known[next(iter(self._known))]
            self._known[u] = self._descend(u)
        return self._known[u]

    def _descend(self, u: float) -> Tensor:
        left, right = torch.zeros(self._shape), self._normal(0)
        place, width, node = min(max(u, 0.0), 1.0), 1.0, 1
        for _ in range(_DEPTH):
            middle = 0.5 * (left + right) + (0.5 * math.sqrt(width)) * self._normal(node)
            place, width = 2.0 * place, 0.5 * width
            if place < 1.0:
                right, node = middle, 2 * node
            else:
                left, node, place = middle, 2 * node + 1, place - 1.0
        return torch.lerp(left, right, place)

    def _normal(self, node: int) -> Tensor:
        generator = torch.Generator().manual_seed(_mixed(self._seed, node))
        return torch.randn(self._shape, generator=generator)


def _mixed(seed: int, node: int) -> int:
    """A 64-bit seed for a node of the tree: two rounds of SplitMix64's finaliser (Steele et al. 2014)."""
    value = seed & _MASK
    for salt in (node, 0x9E3779B97F4A7C15):
        value = (value + salt * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        value ^= value >> 31
    return value


def brownian_noise(seeds: Sequence[int], like: Tensor, sigma_min: float, sigma_max: float) -> Noise:
    """Unit noise from one path per picture, shaped and placed as `like` (B, C, h, w), one seed each.

    The path's clock is log σ, from `sigma_min` to `sigma_max`: take the model's own ends (`NoiseSchedule.sigma_min`
    and `sigma_max`), not the schedule's, so that the number of steps doesn't change the path.
    """
    paths = [BrownianPath(seed, tuple(like.shape[1:])) for seed in seeds]
    low, span = math.log(sigma_min), math.log(sigma_max / sigma_min)

    def noise(sigma: float, sigma_next: float) -> Tensor:
        start, end = (min(max((math.log(s) - low) / span, 0.0), 1.0) for s in (sigma, sigma_next))
        scale = 1.0 / math.sqrt(abs(start - end))
        return placed(torch.stack([(path(start) - path(end)) * scale for path in paths]), like)

    return noise


def torchsde_noise(seeds: Sequence[int], like: Tensor, sigma_min: float, sigma_max: float) -> Noise:
    """The noise of k-diffusion's `BrownianTreeNoiseSampler`, for parity with it: one torchsde tree per picture, its
    clock σ, between the smallest positive and the largest σ of the schedule. Noise has the shape of `like`
    (B, C, h, w), device and dtype too. Raises `MissingExtra` without the extra `sde`."""
    torchsde = require("torchsde", extra="sde")
    shape = tuple(like.shape[1:])
    trees = [
        torchsde.BrownianTree(torch.tensor(sigma_min), torch.zeros(shape), torch.tensor(sigma_max), entropy=seed)
        for seed in seeds
    ]

    # torchsde rounds its ends to six digits and would warn of a step that begins at the end itself
    low, high = (round(float(torch.tensor(sigma)), 6) for sigma in (sigma_min, sigma_max))

    def noise(sigma: float, sigma_next: float) -> Tensor:
        start, end = torch.tensor(sigma_next), torch.tensor(sigma)
        # k-diffusion asks from high σ to low and takes the increment with the sign of that direction
        drawn = torch.stack([-tree(max(low, float(start)), min(high, float(end))) for tree in trees])
        return placed(drawn / (end - start).abs().sqrt(), like)

    return noise
