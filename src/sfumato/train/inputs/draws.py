"""The random numbers of a training step. Each sample's come from its global number, so that neither the batch it is in,
nor the process that computes it, nor a restart changes them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Draws:
    """Random numbers for the samples `numbers` (global, counted over all epochs) of training step `step`.

    Every method names what the numbers are for; another purpose gets other numbers. With a `device`, `normal` and
    `uniform` are computed there, all samples at once; these are other numbers than without, and the same on every
    device up to rounding.
    """

    seed: int
    step: int
    numbers: Sequence[int]
    device: torch.device | None = None

    def generator(self, purpose: str, number: int) -> torch.Generator:
        """A generator for one sample."""
        return torch.Generator().manual_seed(_key("sample", self.seed, number, purpose))

    def shared(self, purpose: str) -> torch.Generator:
        """A generator for the whole step, the same in every process and micro-batch."""
        return torch.Generator().manual_seed(_key("step", self.seed, self.step, purpose))

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers (B, *shape), float32."""
        if self.device is None:
            return torch.stack([torch.randn(*shape, generator=self.generator(purpose, n)) for n in self.numbers])
        words = self._words(purpose, math.prod(shape))
        # Box and Muller 1958: of two uniform numbers, the first is never 0
        radius = torch.sqrt(-2.0 * torch.log((_high(words) + 1).float() * _UNIT))
        angle = (2.0 * math.pi * _UNIT) * _low(words).float()
        return (radius * torch.cos(angle)).view(-1, *shape)

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Numbers in [0, 1), (B, *shape), float32."""
        if self.device is None:
            return torch.stack([torch.rand(tuple(shape), generator=self.generator(purpose, n)) for n in self.numbers])
        return (_high(self._words(purpose, math.prod(shape))).float() * _UNIT).view(-1, *shape)

    def _words(self, purpose: str, count: int) -> Tensor:
        """Random words of 64 bits (B, count): a generator that counts, SplitMix64 (Steele et al. 2014), whose stream
        each sample begins at a place that its number decides."""
        numbers = torch.tensor(self.numbers, dtype=torch.int64)
        places = torch.arange(1, count + 1, device=self.device)
        if self.device is not None:
            numbers = numbers.to(self.device, non_blocking=True)
        first = _mixed(_key("stream", self.seed, purpose) + numbers * _STEP)
        return _mixed(first[:, None] + places * _STEP)


_UNIT = 2.0**-24  # float32 holds whole numbers of 24 bits
_STEP, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mixed(words: Tensor) -> Tensor:
    """SplitMix64's last part, as signed numbers that wrap around."""
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shift words to the right, zeros coming in."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _high(words: Tensor) -> Tensor:
    return _shifted(words, 40)


def _low(words: Tensor) -> Tensor:
    return words & ((1 << 24) - 1)


def _key(*names: str | int) -> int:
    """A key of 63 bits."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
