"""Which sample comes when: a pure function of the seed and the sample's global number, with nothing to save."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from sfumato.data.counter_rng import order_key, permuted


def sample_index(number: int, size: int, seed: int) -> int:
    """The data set's index of the `number`-th sample that training sees, counted from 0 over all epochs.

    Every epoch visits each of `size` samples once, in an order of its own.
    """
    epoch, position = divmod(number, size)
    return permuted(position, size, order_key("epoch", seed, epoch))


def bucketed_index(number: int, sizes: Sequence[int], batch: int, seed: int) -> int:
    """The data set's index of the `number`-th sample that training sees, counted from 0 over all epochs.

    The data set holds `sizes[0]` samples of one shape, then `sizes[1]` of another, and so on. Each `batch` numbers are
    of one shape. An epoch visits every sample once; where those of a shape don't divide evenly, its last batch is
    filled up with the shape's own first ones.
    """
    batches = [-(-size // batch) for size in sizes]
    ends = list(itertools.accumulate(batches))
    step, row = divmod(number, batch)
    epoch, place = divmod(step, ends[-1])
    which = permuted(place, ends[-1], order_key("buckets", seed, epoch))
    group = bisect.bisect_right(ends, which)
    position = ((which - ends[group] + batches[group]) * batch + row) % sizes[group]
    return sum(sizes[:group]) + permuted(position, sizes[group], order_key("bucket", seed, epoch, group))
