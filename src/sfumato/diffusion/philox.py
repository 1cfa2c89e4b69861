"""The normal numbers that torch's CUDA generator draws, computed on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK = 256

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)

_Words = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]


def philox_4x32_10(counter: _Words, key: tuple[int, int]) -> _Words:
    """Ten rounds of Philox 4×32 (Salmon et al. 2011, §3.2) on arrays of 32-bit words held in uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low_product, high_product = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (high_product >> _SHIFT) ^ c1 ^ np.uint64(k0),
            high_product & _MASK,
            (low_product >> _SHIFT) ^ c3 ^ np.uint64(k1),
            low_product & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


class PhiloxStream:
    """Successive draws of `torch.randn` on a CUDA device seeded with `seed`, as float32 CPU tensors.

    Thread j of the card fills elements j, j + T, j + 2T, … with its own Philox sequence (PyTorch
    `DistributionTemplates.h`, `normal_and_transform` and cuRAND's Box–Muller). T depends on the card for draws of more
    than 40,960 numbers; `threads` is SMs × 256·⌊threads per SM / 256⌋ (T4 40,960; A100 221,184; H100 270,336).
    """

    def __init__(self, seed: int, *, threads: int = 270_336) -> None:
        self._key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
        self._threads = threads
        self._calls = 0

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The next `shape` unit normal numbers."""
        count = math.prod(shape)
        threads = min(_BLOCK * math.ceil(count / _BLOCK), self._threads)
        values = np.concatenate(list(self._rounds(count, threads)))[:count]
        self._calls += math.ceil(count / (4 * threads))
        return torch.from_numpy(values.reshape(shape))

    def _rounds(self, count: int, threads: int) -> Iterator[NDArray[np.float32]]:
        """Numbers in order: each Philox call of all threads gives four runs of `threads` elements."""
        thread = np.arange(threads, dtype=np.uint64)
        zero = np.zeros_like(thread)
        for call in range(math.ceil(count / (4 * threads))):
            offset = self._calls + call
            words = philox_4x32_10((zero + np.uint64(offset), zero, thread, zero), self._key)
            for first, second in (words[:2], words[2:]):
                yield from _box_muller(first, second)


def _box_muller(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> tuple[NDArray[np.float32], ...]:
    """cuRAND's `_curand_box_muller`, in float64 and rounded once: sine first, then cosine."""
    u = (first.astype(np.float64) + 0.5) * 2.0**-32
    angle = (second.astype(np.float64) + 0.5) * (2.0**-31 * math.pi)
    radius = np.sqrt(-2.0 * np.log(u))
    return (radius * np.sin(angle)).astype(np.float32), (radius * np.cos(angle)).astype(np.float32)
