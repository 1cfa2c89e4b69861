"""Which sample comes when: a pure function of the seed and the sample's global number, with nothing to save."""

from __future__ import annotations

import hashlib
import struct

_ROUNDS = 6


def sample_index(number: int, size: int, seed: int) -> int:
    """The data set's index of the `number`-th sample that training sees, counted from 0 over all epochs.

    Every epoch visits each of `size` samples once, in an order of its own.
    """
    epoch, position = divmod(number, size)
    return permuted(position, size, hashlib.blake2b(struct.pack("<qq", seed, epoch), digest_size=16).digest())


def permuted(position: int, size: int, key: bytes) -> int:
    """Where a permutation of `range(size)`, chosen by `key`, sends `position`.

    A balanced Feistel network over the next even number of bits (Luby & Rackoff 1988), walked until it lands inside
    the range (Black & Rogaway 2002): the order of a billion samples takes no memory.
    """
    half = ((size - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    value = position
    while True:
        left, right = value >> half, value & mask
        for i in range(_ROUNDS):
            digest = hashlib.blake2b(struct.pack("<BQ", i, right), digest_size=8, key=key).digest()
            left, right = right, left ^ int.from_bytes(digest, "little") & mask
        value = left << half | right
        if value < size:
            return value
