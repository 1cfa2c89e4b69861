"""What a run is given to learn from: a folder's pictures, apart from those that only validation sees."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, overload

from sfumato.data.open_dataset import open_dataset
from sfumato.data.samples import Dataset, Sample, Subset, spread
from sfumato.data.shards import ShardSet
from sfumato.errors import DataError, InvalidConfig
from sfumato.pocket.dataset.emoji import EmojiSet, Split
from sfumato.pocket.dataset.scenes import SceneMix, SceneSet

logger = logging.getLogger("sfumato")

_EMOJI_FIELDS = frozenset({"style", "codepoint", "label", "license", "source"})
MOST_HELD_OUT = 64  # pictures that validation looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which samples of the data are trained on. Wrong values raise `InvalidConfig`."""

    held_out: Annotated[int, "of so many pictures one is kept for validation; 0: none. The emoji set has its own"] = 50
    scenes: Annotated[int, "of the emoji set: so many scenes composed of its pictures; 0: the pictures alone"] = 0
    mix: Annotated[SceneMix, "how often each kind of scene is drawn"] = field(default_factory=SceneMix)

    def __post_init__(self) -> None:
        if self.held_out < 0 or self.held_out == 1:
            raise InvalidConfig(f"data.held_out = {self.held_out} must be 0, or 2 and more")
        if self.scenes < 0:
            raise InvalidConfig(f"data.scenes = {self.scenes} must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The samples to learn from, and those held out; where there is too little data to hold any out, the latter are
    the former, and `known` says so."""

    training: Dataset
    held_out: Dataset
    known: bool = False


def open_pictures(folder: Path, config: DataConfig, seed: int) -> Pictures:
    """The pictures in `folder`: files with captions, WebDataset shards, or the emoji set's shards.

    Raises `DataError` for what can't be read or is empty, `InvalidConfig` for scenes of anything else than emoji.
    """
    dataset = open_dataset(folder)
    if isinstance(dataset, ShardSet) and dataset.record(0).fields.keys() >= _EMOJI_FIELDS:
        return _emoji_pictures(EmojiSet(dataset), config, seed)
    if config.scenes:
        raise InvalidConfig(f"data.scenes = {config.scenes}: scenes are composed of the emoji set, not of {folder}")
    kept, apart = split(len(dataset), config.held_out)
    training = Subset(dataset, kept)
    if not len(apart):
        warn_of_few()
        return Pictures(training=training, held_out=training, known=True)
    return Pictures(training=training, held_out=Subset(dataset, apart))


def warn_of_few() -> None:
    """Say that validation has no samples of its own."""
    logger.warning(
        "there are too few pictures to keep any from training: validation looks at those that are trained on"
    )


def split(size: int, every: int) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers of `size` samples that are trained on, and those held out: the last of each `every`.

    Neither takes memory, however large the set. `DataError` for a set of nothing.
    """
    if size < 1:
        raise DataError("there are no samples to train on: the data set is empty")
    if not every:
        return range(size), range(0)
    return _AllBut(size, every), range(every - 1, size, every)


class _AllBut(Sequence[int]):
    """The numbers below `size` whose successors `every` doesn't divide."""

    def __init__(self, size: int, every: int) -> None:
        self._size, self._every = size, every

    def __len__(self) -> int:
        return self._size - self._size // self._every

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return index + index // (self._every - 1)


def differently_called(dataset: Dataset, count: int) -> list[Sample]:
    """Choose up to `count` samples, evenly spread, no two with the same first caption. `DataError` for one without."""
    found: dict[str, int] = {}
    for index in spread(len(dataset), 4 * count):
        record = dataset.record(index)
        if not record.captions:
            raise DataError(f"sample {record.key!r:.80} has no caption: give it one, or leave the sample out")
        found.setdefault(record.captions[0], index)
    indices = list(found.values())
    return [dataset.sample(indices[i]) for i in spread(len(indices), count)]


def _emoji_pictures(emoji: EmojiSet, config: DataConfig, seed: int) -> Pictures:
    """The training part, alone or as scenes; held out are pictures and labels that no scene shows, half of each."""
    subjects = emoji.split("train")
    training: Dataset = Subset(emoji, [subject.index for subject in subjects])
    if config.scenes:
        training = SceneSet(emoji=emoji, subjects=subjects, seed=seed, length=config.scenes, mix=config.mix)
    splits: tuple[Split, ...] = ("held-out-picture", "held-out-label")
    apart = [subject.index for name in splits for subject in emoji.split(name)]
    if not apart:
        warn_of_few()
        return Pictures(training=training, held_out=training, known=True)
    return Pictures(training=training, held_out=Subset(emoji, apart))
