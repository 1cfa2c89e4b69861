"""What is in a data set, and whether it is whole."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sfumato.data import tar_index
from sfumato.data.near_duplicates import Hash, perceptual_hash, without_near_duplicates
from sfumato.data.samples import Dataset, StoredDataset
from sfumato.data.shards import ShardSet
from sfumato.errors import DataError
from sfumato.progress import Cancellation, OnProgress, Progress, ignore

MAX_PROBLEMS = 1000  # more would be the same one again
ALIKE = 4  # bits of 64


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What verifying found: `problems` are lines that each name a file and, where it is about one, a sample; none means
    that all is well."""

    shards: int
    samples: int
    problems: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsReport:
    """Figures of a data set. Sizes are pictures' (width, height) in pixels; counters map what was met to how often.

    `identical` pictures have the bytes of an earlier one, `alike` ones its perceptual hash to `ALIKE` bits (and are
    counted there, too). Captions are measured in words.
    """

    samples: int
    picture_bytes: int
    sizes: Mapping[tuple[int, int], int]
    modes: Mapping[str, int]
    licenses: Mapping[str, int]
    captions: int
    without_caption: int
    words_a_caption: float
    longest_caption: int
    identical: int
    alike: int

    @property
    def median_size(self) -> tuple[int, int]:
        """Median width and median height, each by itself."""
        widths, heights = zip(*Counter(self.sizes).elements(), strict=True)
        return int(np.median(widths)), int(np.median(heights))


def verify(dataset: Dataset, cancellation: Cancellation | None = None) -> VerifyReport:
    """Read everything: of shards their hashes and indices, and of any data set every text and every picture.

    What is wrong is listed, not raised, up to `MAX_PROBLEMS`. A key that two shards share is a problem too.
    """
    problems: list[str] = []
    for problem in _problems(dataset, cancellation or Cancellation()):
        problems.append(problem)
        if len(problems) == MAX_PROBLEMS:
            break
    shards = len(dataset.shards) if isinstance(dataset, ShardSet) else 0
    return VerifyReport(shards=shards, samples=len(dataset), problems=tuple(problems))


def stats(
    dataset: StoredDataset, on_progress: OnProgress = ignore, cancellation: Cancellation | None = None
) -> StatsReport:
    """Decode every sample and count. `DataError` for one that can't be read: `verify` lists them all."""
    stop = cancellation or Cancellation()
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    licenses: Counter[str] = Counter()
    lengths: list[int] = []
    digests: set[bytes] = set()
    hashes: list[Hash] = []
    without = size = 0
    for index in range(len(dataset)):
        stop.check()
        on_progress(Progress(stage="samples", step=index, steps=len(dataset)))
        sample = dataset.sample(index)
        data = dataset.picture_bytes(index)
        size += len(data)
        digests.add(hashlib.sha256(data).digest())
        hashes.append(perceptual_hash(sample.picture))
        sizes[sample.picture.size] += 1
        modes[sample.picture.mode] += 1
        licenses[str(sample.fields.get("license", "unknown"))] += 1
        lengths += [len(caption.split()) for caption in sample.captions]
        without += not sample.captions
    return StatsReport(
        samples=len(dataset),
        picture_bytes=size,
        sizes=dict(sizes),
        modes=dict(modes),
        licenses=dict(licenses),
        captions=len(lengths),
        without_caption=without,
        words_a_caption=sum(lengths) / max(len(lengths), 1),
        longest_caption=max(lengths, default=0),
        identical=len(dataset) - len(digests),
        alike=len(dataset) - len(without_near_duplicates(hashes, ALIKE)),
    )


def _problems(dataset: Dataset, stop: Cancellation) -> Iterator[str]:
    if isinstance(dataset, ShardSet):
        yield from _shard_problems(dataset, stop)
    keys: dict[str, int] = {}
    for index in range(len(dataset)):
        stop.check()
        try:
            sample = dataset.sample(index)
        except DataError as error:
            yield str(error)
            continue
        if keys.setdefault(sample.key, index) != index:
            yield f"sample {sample.key!r} comes twice, as number {keys[sample.key]} and {index}: leave one out"


def _shard_problems(dataset: ShardSet, stop: Cancellation) -> Iterator[str]:
    for number, shard in enumerate(dataset.shards):
        stop.check()
        try:
            _check_shard(dataset, number)
        except DataError as error:
            yield str(error)
        except OSError as error:
            yield f"{shard.path} can't be read ({error.strerror or error})"


def _check_shard(dataset: ShardSet, number: int) -> None:
    """Raise `DataError` where a shard isn't what its hash and its index say."""
    shard = dataset.shards[number]
    if shard.sha256:
        with shard.path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                raise DataError(f"{shard.path} has changed since it was made (SHA-256): copy or make it again")
    scanned, rows = tar_index.scan(shard.path), dataset.rows(number)
    if scanned.dtype != rows.dtype or scanned.tobytes() != rows.tobytes():
        raise DataError(f"{shard.path} is not as its index says: make the set again")
