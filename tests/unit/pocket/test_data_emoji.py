"""The emoji set: words for its labels, splits that stay, and the set made anew from packages."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.counter_rng import Stream
from sfumato.data.resharding import ShardOptions, make_shards
from sfumato.data.shard_writer import as_stored, as_webp, write_shards
from sfumato.errors import DataError
from sfumato.pocket.dataset import emoji_build
from sfumato.pocket.dataset.emoji import EmojiSet, Subject, captions_of, open_emoji, split_of
from sfumato.pocket.dataset.emoji_build import Package, codepoint, open_drawings, read_package
from sfumato.pocket.dataset.nouns import noun, plural_of, with_article
from support.made_data import LABELS, STYLES, emoji_set, noise, png


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> EmojiSet:
    return emoji_set(tmp_path_factory.mktemp("emoji") / "set")


def subject(label: str, style: str = "flat", group: str | None = "animals-nature", subgroup: str = "x") -> Subject:
    return Subject(
        index=0, key=f"{style}-{label}", label=label, style=style, group=group, subgroup=subgroup,
        tags=("one", "two", label, "three", "four"), license="MIT", source="here",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("label", "group", "subgroup", "single", "plural"),
    [
        ("red apple", "food-drink", "food-fruit", "a red apple", "red apples"),
        ("unicorn", "animals-nature", "animal-mammal", "a unicorn", "unicorns"),
        ("astronaut", "people-body", "person-role", "an astronaut", "astronauts"),
        ("hourglass", "travel-places", "time", "an hourglass", "hourglasses"),
        ("x-ray", "objects", "medical", "an x-ray", "x-rays"),
        ("ewe", "animals-nature", "animal-mammal", "a ewe", "ewes"),
        ("grapes", "food-drink", "food-fruit", "grapes", None),
        ("bread", "food-drink", "food-prepared", "bread", None),
        ("octopus", "animals-nature", "animal-marine", "an octopus", "octopuses"),
        ("rhinoceros", "animals-nature", "animal-mammal", "a rhinoceros", "rhinoceroses"),
        ("glasses", "objects", "clothing", "glasses", None),
        ("butterfly", "animals-nature", "animal-bug", "a butterfly", "butterflies"),
        ("monkey", "animals-nature", "animal-mammal", "a monkey", "monkeys"),
        ("mouse", "animals-nature", "animal-mammal", "a mouse", "mice"),
        ("snowman without snow", "travel-places", "sky-weather", "a snowman without snow", "snowmen without snow"),
        ("pot of food", "food-drink", "food-prepared", "a pot of food", "pots of food"),
        ("man’s shoe", "objects", "clothing", "a man's shoe", "man's shoes"),
        ("flag: Japan", "flags", "country-flag", "the flag of Japan", None),
        ("keycap: 5", "symbols", "keycap", "a keycap 5", None),
        ("woman: curly hair", "people-body", "person", "a woman with curly hair", None),
        ("man: bald", "people-body", "person", "a bald man", "bald men"),
        ("kiss: woman, man", "people-body", "family", "a kiss, woman and man", None),
        ("man running: facing right", "people-body", "person-activity", "a man running facing right", None),
        ("seven-thirty", "travel-places", "time", "seven-thirty", None),
        ("Leo", "symbols", "zodiac", "Leo", None),
        ("Japanese “here” button", "symbols", "alphanum", 'a Japanese "here" button', None),
        ("regional indicator A", None, None, "regional indicator A", None),
        ("blue circle", "symbols", "geometric", "a blue circle", "blue circles"),
    ],
)
def test_english(label: str, group: str | None, subgroup: str | None, single: str, plural: str | None) -> None:
    words = noun(label, group, subgroup)
    assert (words.single, words.plural) == (single, plural)
    assert words.single.endswith(words.bare)


PLURALS = {
    "box": "boxes", "peach": "peaches", "dish": "dishes", "key": "keys", "cherry": "cherries", "bus": "buses",
    "fireman": "firemen", "fish": "fish", "child": "children", "die": "dice", "wolf": "wolves", "potato": "potatoes",
}  # fmt: skip


@pytest.mark.parametrize(("one", "more"), PLURALS.items())
def test_plurals(one: str, more: str) -> None:
    assert plural_of(one) == more


@pytest.mark.parametrize(
    "right", ["an orange", "a one-piece swimsuit", "an SOS button", "an umbrella", "a UFO", "a ewe"]
)
def test_articles(right: str) -> None:
    assert with_article(right.partition(" ")[2]) == right


def test_captions_go_from_the_bare_label_to_everything() -> None:
    captions = captions_of(subject("cat"))
    assert captions[:4] == ("cat", "a cat", "a cat, flat style", "a flat emoji of a cat")
    assert re.fullmatch(r"cat(, (one|two|three|four)){3}", captions[4])
    assert re.fullmatch(r"a cat in flat style(, (one|two|three|four)){3}", captions[5])
    assert captions == captions_of(subject("cat"))
    assert {captions_of(subject("cat", style))[4] for style in ("flat", "noto", "3d", "twemoji")} != {captions[4]}


def test_samples_carry_captions_and_licences(emoji: EmojiSet) -> None:
    assert len(emoji) == len(LABELS) * len(STYLES)
    for index in (0, 11, 27):
        record, sample = emoji.record(index), emoji.sample(index)
        assert record.captions == sample.captions
        assert 4 <= len(record.captions) <= 6
        assert record.captions[0] == emoji.subjects[index].noun.bare
        assert sample.picture.mode == "RGBA"
        assert emoji.subjects[index].index == index
        assert (record.fields["license"], record.fields["source"]) == ("CC0-1.0", "drawn for a test")


def test_the_set_encoded_anew_has_the_same_subjects(emoji: EmojiSet, tmp_path: Path) -> None:
    """One character drawn twice, in shards that become one: its second picture is kept, and shows nothing new."""
    for name, indices in (("a", range(12)), ("b", [3, *range(12, len(emoji))])):
        write_shards(emoji, as_stored(emoji), tmp_path / name, name=name, indices=indices)
        (tmp_path / name / f"{name}-00000.tar").rename(tmp_path / f"{name}.tar")
    source, options = open_emoji(tmp_path), ShardOptions(quality=90, captions_required=False)
    report = make_shards(source.shards, tmp_path / "webp", options)
    again = open_emoji(tmp_path / "webp")
    assert report.kept == len(again) == len(emoji) + 1
    assert again.subjects == source.subjects
    assert len(again.subjects) == len(emoji)
    keys = [again.record(index).key for index in range(len(again))]
    assert (keys[12], len(set(keys))) == (f"{keys[3]}~2", len(keys))
    for index in range(len(again)):
        before, after = (np.asarray(one.sample(index).picture, np.float64) for one in (source, again))
        shown = before[..., 3] == 255
        assert (before[..., 3] == after[..., 3]).all()
        assert np.abs(before - after)[shown].mean() < 3.0


def test_of_two_pictures_with_one_key_only_the_first_is_a_subject(emoji: EmojiSet, tmp_path: Path) -> None:
    twice = write_shards(emoji, as_stored(emoji), tmp_path / "set", name="x", indices=[3, 4, 3], samples_per_shard=2)
    subjects = EmojiSet(twice).subjects
    assert [(subject.key, subject.index) for subject in subjects] == [
        (emoji.subjects[3].key, 0),
        (emoji.subjects[4].key, 1),
    ]


def test_the_splits_are_disjoint_whole_and_fixed(emoji: EmojiSet) -> None:
    parts = [emoji.split(part) for part in ("train", "held-out-label", "held-out-picture")]
    assert sorted(s.key for part in parts for s in part) == sorted(s.key for s in emoji.subjects)
    assert {s.style for s in emoji.split("train", ["noto"])} == {"noto"}
    # Written down: a split that moved would put what was held out into training.
    known = ("jar", "ladder", "cat", "dog", "shark", "crescent moon", "mango", "horse", "red apple")
    held = {label for label in known if split_of(subject(label)) == "held-out-label"}
    assert held == {"jar", "ladder", "shark", "crescent moon", "mango"}


def test_a_label_is_held_out_in_every_style_and_about_three_in_a_hundred_are() -> None:
    counts: Counter[str] = Counter()
    for number in range(3000):
        parts = {split_of(subject(f"label {number}", style)) for style in ("flat", "noto")}
        assert "held-out-label" not in parts or len(parts) == 1
        counts.update(parts)
    assert 60 < counts["held-out-label"] < 125
    assert 120 < counts["held-out-picture"] < 230


# ---- The set made anew ------------------------------------------------------------------------------------------


def package(files: dict[str, bytes]) -> tuple[Package, bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    data = buffer.getvalue()
    integrity = base64.b64encode(hashlib.sha512(data).digest()).decode()
    return Package(name="@scope/some-icons", version="1.0.0", integrity=integrity), data


def labels() -> dict[str, bytes]:
    names = {"groups": {"3": "animals-nature"}, "subgroups": {"34": "animal-mammal"}}
    entries = [
        {"label": "cat", "hexcode": "1F408", "tags": ["pet"], "group": 3, "subgroup": 34},
        {"label": "eye", "hexcode": "1F441-FE0F", "tags": ["see"], "group": 3, "subgroup": 34},
        {"label": "letter", "hexcode": "1F1E6"},
    ]
    return {"meta/groups.json": json.dumps(names).encode(), "en/data.json": json.dumps(entries).encode()}


def webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, exact=True)
    return buffer.getvalue()


def test_a_package_is_named_as_npm_names_it_and_known_by_its_hash(tmp_path: Path) -> None:
    known, data = package({"icons.json": b"{}", "assets/a.webp": b"x"})
    assert known.archive == "scope-some-icons-1.0.0.tgz"
    (tmp_path / known.archive).write_bytes(data)
    path = emoji_build.fetch(known, tmp_path)
    assert read_package(known, path) == {"icons.json": b"{}", "assets/a.webp": b"x"}
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"is not @scope/some-icons 1\.0\.0"):
        read_package(known, path)


def test_drawings_with_a_label_become_samples(tmp_path: Path) -> None:
    large = noise(256, 256, 0, 4)
    files = {
        "assets/1f441-fe0f.webp": webp(large),
        "assets/1f441.webp": webp(noise(256, 256, 1, 4)),
        "assets/1f408.webp": webp(noise(256, 256, 2, 4)),
        "assets/1f999.webp": b"no label, never decoded",
        "assets/1f1e6.webp": webp(noise(256, 256, 3, 4)),
    }
    drawings = open_drawings(labels(), {"3d": files})
    assert [record.key for record in drawings.records] == ["3d-1f1e6", "3d-1f408", "3d-1f441"]
    assert drawings.record(0).fields["group"] is None
    assert drawings.record(2).fields == {
        "style": "3d", "codepoint": "1f441", "label": "eye", "tags": ["see"], "group": "animals-nature",
        "subgroup": "animal-mammal", "license": "MIT",
        "source": "Fluent Emoji 3D, npm @lobehub/fluent-emoji-3d 1.1.0",
    }  # fmt: skip
    write_shards(drawings, as_webp(drawings, 101), tmp_path / "set", name="emoji")
    written = open_emoji(tmp_path / "set")
    expected = np.asarray(large.resize((128, 128), Image.Resampling.LANCZOS))
    # The one named in full comes first.
    assert np.array_equal(np.asarray(written.sample(2).picture), expected)


def test_vector_drawings_are_centred_in_a_square(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    class Resvg:
        @staticmethod
        def svg_to_bytes(**options: object) -> list[int]:
            asked.append(options)
            return list(png(noise(128, 128, 0, 4)))

    monkeypatch.setattr(emoji_build, "require", lambda module, extra: Resvg)
    icons = {"icons": {"cat": {"body": "<g/>"}, "eye": {"body": "<path/>", "height": 25.5}}, "width": 36, "height": 36}
    files = {
        "icons.json": json.dumps(icons).encode(),
        "chars.json": json.dumps({"1f408": "cat", "1f441-fe0f": "eye", "1f441": "eye", "1f1e6": "an alias"}).encode(),
    }
    drawings = open_drawings(labels(), {"twemoji": files})
    assert [record.fields["label"] for record in drawings.records] == ["cat", "eye"]
    assert drawings.sample(1).picture.size == (128, 128)
    assert asked == [
        {
            "svg_string": '<svg xmlns="http://www.w3.org/2000/svg" width="128" height="128" '
            'viewBox="0 0 36 25.5"><path/></svg>',
            "width": 128,
            "height": 128,
        }
    ]


def test_code_points_are_compared_without_variation_selectors() -> None:
    assert codepoint("1F441-FE0F-200D-1F5E8-FE0F") == codepoint("1f441-200d-1f5e8") == "1f441-200d-1f5e8"


def test_the_same_stream_of_tags_whatever_came_before() -> None:
    Stream("tags", "other").bits64()
    assert captions_of(subject("dog")) == captions_of(subject("dog"))
