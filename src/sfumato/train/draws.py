"""The random numbers of a training step. Each sample's come from its global number, so that neither the batch it is in,
nor the process that computes it, nor a restart changes them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Draws:
    """Random numbers for the samples `numbers` (global, counted over all epochs) of training step `step`.

    Every method names what the numbers are for; another purpose gets other numbers.
    """

    seed: int
    step: int
    numbers: Sequence[int]

    def generator(self, purpose: str, number: int) -> torch.Generator:
        """For one sample."""
        return _generator("sample", self.seed, number, purpose)

    def shared(self, purpose: str) -> torch.Generator:
        """One for the whole step, the same in every process and micro-batch."""
        return _generator("step", self.seed, self.step, purpose)

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers (B, *shape), float32 on the CPU."""
        return torch.stack([torch.randn(*shape, generator=self.generator(purpose, n)) for n in self.numbers])

    def uniform(self, purpose: str) -> Tensor:
        """Numbers in [0, 1), (B,), float32 on the CPU."""
        return torch.stack([torch.rand((), generator=self.generator(purpose, n)) for n in self.numbers])


def _generator(*names: str | int) -> torch.Generator:
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
