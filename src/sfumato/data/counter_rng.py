"""Randomness as a pure function of names: the same numbers on every machine, in every version, in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_WORDS = 8  # 64-bit numbers in one BLAKE2b digest
_TWO_53 = 2.0**-53


class Stream:
    """An endless series of random numbers that its names alone decide: `Stream("crop", seed, epoch, index)`.

    The numbers are BLAKE2b in counter mode. Neither `random` nor `numpy.random.Generator` promises the same draws in
    its next version, and a sample must be the same years later; nor is there any state that a crash could lose.
    """

    __slots__ = ("_block", "_key", "_left")

    def __init__(self, *names: str | int) -> None:
        self._key = hashlib.blake2b(repr(names).encode(), digest_size=32).digest()
        self._block = 0
        self._left: list[int] = []

    def bits64(self) -> int:
        """The next number in [0, 2**64)."""
        if not self._left:
            digest = hashlib.blake2b(self._block.to_bytes(8, "little"), key=self._key).digest()
            self._left = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_WORDS)]
            self._block += 1
        return self._left.pop()

    def below(self, limit: int) -> int:
        """An integer in [0, limit), each equally likely to one part in 2**64 / limit."""
        return self.bits64() * limit >> 64

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both included."""
        return low + self.below(high - low + 1)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * ((self.bits64() >> 11) * _TWO_53)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def choice(self, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[self.below(len(options))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order (Fisher–Yates)."""
        order = list(items)
        for i in range(len(order) - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


def share(*names: str | int) -> float:
    """A number in [0, 1) that the names alone decide: below 0.1 for a tenth of them, always the same tenth."""
    return Stream(*names).uniform()
