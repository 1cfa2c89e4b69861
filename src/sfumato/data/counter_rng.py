"""Randomness as a pure function of names: the same numbers and the same orders on every machine, in every version."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_WORDS = 8  # 64-bit numbers in one BLAKE2b digest
_TWO_53 = 2.0**-53
_ROUNDS = 6  # of the Feistel network
_WORD_BYTES = 8


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
        """Draw true with this probability."""
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


def order_key(*names: str | int) -> bytes:
    """The key of the order that these names decide."""
    return hashlib.blake2b(repr(names).encode(), digest_size=16).digest()


def permuted(position: int, size: int, key: bytes) -> int:
    """What stands at `position` in a random order of `range(size)` that `key` (at most 64 bytes) decides.

    A balanced Feistel network is a permutation of all numbers of an even count of bits (Luby and Rackoff 1988);
    following it from a number in range until it is in range again makes one of `range(size)` (Black and Rogaway 2002).
    """
    if not 0 <= position < size:
        raise IndexError(f"position {position} of {size}")
    bits = max((size - 1).bit_length() + 1 >> 1, 1)
    mask = (1 << bits) - 1
    while True:
        left, right = position >> bits, position & mask
        for counter in range(_ROUNDS):
            message = counter.to_bytes(1, "little") + right.to_bytes(_WORD_BYTES, "little")
            mixed = hashlib.blake2b(message, digest_size=_WORD_BYTES, key=key).digest()
            left, right = right, left ^ (int.from_bytes(mixed, "little") & mask)
        position = left << bits | right
        if position < size:
            return position
