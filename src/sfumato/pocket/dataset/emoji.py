"""The emoji set: a few thousand small drawings in four styles, each with words for what it shows.

Its shards (`emoji_build` makes them) hold, beside each 128×128 RGBA picture: style, codepoint, label, tags, group,
subgroup, source and license.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sfumato.data.counter_rng import Stream, share
from sfumato.data.samples import Record, Sample, spread
from sfumato.data.shards import ShardSet, open_shards
from sfumato.errors import DataError
from sfumato.pocket.dataset.nouns import Noun, noun

STYLE_WORDS = {"noto": "noto", "twemoji": "twemoji", "flat": "flat", "3d": "3d"}
HELD_OUT_LABELS = 0.03  # of all labels, in every style: what the model has never seen under any name
HELD_OUT_PICTURES = 0.03  # of the other pictures: what it has seen in another style only

Split = Literal["train", "held-out-label", "held-out-picture"]

_TAGS_SAID = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What one emoji picture shows, and where it is: `index` is its number in the set."""

    index: int
    key: str
    label: str
    style: str
    group: str | None
    subgroup: str | None
    tags: tuple[str, ...]
    license: str
    source: str

    @property
    def noun(self) -> Noun:
        """What to call the subject."""
        return noun(self.label, self.group, self.subgroup)


class EmojiSet:
    """The emoji shards as a data set whose samples carry several captions."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def record(self, index: int) -> Record:
        return _captioned(self.shards.record(index), index)

    def sample(self, index: int) -> Sample:
        sample = self.shards.sample(index)
        record = _captioned(sample, index)
        return Sample(key=record.key, captions=record.captions, fields=record.fields, picture=sample.picture)

    def picture_bytes(self, index: int) -> bytes:
        return self.shards.picture_bytes(index)

    @cached_property
    def subjects(self) -> tuple[Subject, ...]:
        """What every picture shows, in the set's order; of two pictures of one character in one style only the first
        counts."""
        found: dict[tuple[str, str], Subject] = {}
        for index in range(len(self.shards)):
            record = self.shards.record(index)
            subject = subject_of(record, index)
            found.setdefault((subject.style, _text(record.fields, "codepoint", record.key)), subject)
        return tuple(found.values())

    def split(self, name: Split, styles: Collection[str] = tuple(STYLE_WORDS)) -> tuple[Subject, ...]:
        """The subjects of one part, in the set's order."""
        return tuple(subject for subject in self.subjects if subject.style in styles and split_of(subject) == name)


def evenly(subjects: Sequence[Subject], count: int) -> list[Subject]:
    """Up to `count` of them, all of different names ("a …"), evenly spread over the names' order."""
    named = {subject.noun.single: subject for subject in subjects}
    names = sorted(named)
    return [named[names[i]] for i in spread(len(names), count)]


def open_emoji(folder: Path) -> EmojiSet:
    """The emoji set whose shards are in `folder`. `DataError` where it is another set."""
    emoji = EmojiSet(open_shards(folder))
    emoji.record(0)
    return emoji


def split_of(subject: Subject) -> Split:
    """Which part a picture belongs to: decided by a hash of its label and style, the same for ever.

    A label that is held out is so in every style, hence nothing of it is known; of a picture held out the label may
    be known from another style.
    """
    if share("held-out label", subject.label) < HELD_OUT_LABELS:
        return "held-out-label"
    if share("held-out picture", subject.label, subject.style) < HELD_OUT_PICTURES:
        return "held-out-picture"
    return "train"


def subject_of(record: Record, index: int) -> Subject:
    """The subject of sample `index`. `DataError` names the field that is missing or no text."""
    fields = record.fields
    group, subgroup = fields.get("group"), fields.get("subgroup")
    tags = fields.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DataError(f"sample {record.key!r}: its 'tags' must be a list of words, not {tags!r:.60}")
    return Subject(
        index=index,
        key=record.key,
        label=_text(fields, "label", record.key),
        style=_text(fields, "style", record.key),
        group=group if isinstance(group, str) else None,
        subgroup=subgroup if isinstance(subgroup, str) else None,
        tags=tuple(tags),
        license=_text(fields, "license", record.key),
        source=_text(fields, "source", record.key),
    )


def captions_of(subject: Subject) -> tuple[str, ...]:
    """Six ways to say what the picture alone shows, from the bare label to label, style and tags.

    The tags are a sample of the subject's own, the same every time.
    """
    words = subject.noun
    style = STYLE_WORDS.get(subject.style, subject.style)
    tags = Stream("tags", subject.key).shuffled([tag for tag in subject.tags if tag != subject.label])[:_TAGS_SAID]
    captions = (
        words.bare,
        words.single,
        f"{words.single}, {style} style",
        f"a {style} emoji of {words.single}",
        ", ".join([words.bare, *tags]),
        ", ".join([f"{words.single} in {style} style", *tags]),
    )
    return tuple(dict.fromkeys(captions))


def _captioned(record: Record, index: int) -> Record:
    captions = captions_of(subject_of(record, index))
    return Record(key=record.key, captions=captions, fields=record.fields)


def _text(fields: Mapping[str, Any], field: str, key: str) -> str:
    value = fields.get(field)
    if not isinstance(value, str) or not value:
        raise DataError(f"sample {key!r} has no {field!r}: this is not the emoji set, or it is damaged")
    return value
