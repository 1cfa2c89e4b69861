"""Which sample comes when: a pure function of the seed and the sample's global number, with nothing to save."""

from __future__ import annotations

from sfumato.data.permutation import order_key, permuted


def sample_index(number: int, size: int, seed: int) -> int:
    """The data set's index of the `number`-th sample that training sees, counted from 0 over all epochs.

    Every epoch visits each of `size` samples once, in an order of its own.
    """
    epoch, position = divmod(number, size)
    return permuted(position, size, order_key("epoch", seed, epoch))
