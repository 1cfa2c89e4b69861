"""Random orders without a list of them: any place of a permutation of a billion samples at once."""

from __future__ import annotations

import hashlib

_ROUNDS = 6
_WORD = 8  # bytes


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
            message = counter.to_bytes(1, "little") + right.to_bytes(_WORD, "little")
            mixed = hashlib.blake2b(message, digest_size=_WORD, key=key).digest()
            left, right = right, left ^ (int.from_bytes(mixed, "little") & mask)
        position = left << bits | right
        if position < size:
            return position
