"""Latents of several shapes, and an order in which every batch is of one: a pure function of the sample's number."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.data.buckets import Bucket, bucket_of
from sfumato.data.permutation import order_key, permuted
from sfumato.data.samples import Dataset
from sfumato.errors import InvalidConfig
from sfumato.train.inputs.encoded_latents import LatentDataset, LatentSample


@dataclass(frozen=True, slots=True)
class BucketedLatents:
    """Latent data sets of one shape each, numbered through."""

    parts: Sequence[LatentDataset]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def latents(self, index: int) -> LatentSample:
        for part in self.parts:
            if index < len(part):
                return part.latents(index)
            index -= len(part)
        raise IndexError(index)


def by_bucket(dataset: Dataset, buckets: Sequence[Bucket]) -> dict[Bucket, list[int]]:
    """The samples' numbers by the bucket nearest to their pictures' shapes; buckets without any are left out."""
    groups: dict[Bucket, list[int]] = {}
    for index in range(len(dataset)):
        width, height = dataset.sample(index).picture.size
        groups.setdefault(bucket_of(width, height, buckets), []).append(index)
    return {bucket: groups[bucket] for bucket in buckets if bucket in groups}


def bucket_sizes(dataset: LatentDataset) -> tuple[int, ...]:
    """How many samples each shape has, in the order of their numbers. `InvalidConfig` for latents of one shape."""
    if not isinstance(dataset, BucketedLatents):
        raise InvalidConfig("buckets need latents that were encoded in several shapes: set buckets to false")
    return tuple(map(len, dataset.parts))


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
