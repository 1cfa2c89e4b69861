"""Composed scenes: captions that are true of the pixels, even coverage, and combinations that are never trained."""

from __future__ import annotations

import itertools
import pickle
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from sfumato.errors import DataError, InvalidRequest
from sfumato.pocket.dataset.emoji import EmojiSet
from sfumato.pocket.dataset.scenes import BACKGROUNDS, Part, Scene, SceneMix, SceneSet, is_held_out
from sfumato.pocket.dataset.sprites import Sprite
from support.made_data import STYLES, emoji_set

COUNT = 1400  # fifty runs through the 28 subjects
NUMBERS = {"two": 2, "three": 3, "four": 4, "2": 2, "3": 3, "4": 4}


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> EmojiSet:
    return emoji_set(tmp_path_factory.mktemp("emoji") / "set")


def scene_set(emoji: EmojiSet, *, part: Part = "train", seed: int = 0, mix: SceneMix | None = None) -> SceneSet:
    return SceneSet(emoji=emoji, subjects=emoji.subjects, seed=seed, length=10**6, part=part, mix=mix or SceneMix())


@pytest.fixture(scope="module")
def scenes(emoji: EmojiSet) -> SceneSet:
    return scene_set(emoji, mix=SceneMix(single=1, place=1, count=1, pair=2, on=1, riding=1))


@pytest.fixture(scope="module")
def drawn(scenes: SceneSet) -> list[Scene]:
    return [scenes.scene(index) for index in range(COUNT)]


def labels(scene: Scene) -> list[str]:
    return [placed.subject.label for placed in scene.objects]


def centre(scene: Scene, number: int) -> tuple[float, float]:
    left, top, right, bottom = scene.objects[number].box
    return (left + right) / 2, (top + bottom) / 2


def test_a_scene_depends_on_seed_and_index_alone(emoji: EmojiSet, scenes: SceneSet) -> None:
    again = scene_set(emoji, mix=scenes.mix)
    for index in [999, 3, 500_000, 0]:
        a, b = scenes.sample(index), again.sample(index)
        assert (a.key, a.captions, a.fields) == (b.key, b.captions, b.fields)
        assert a.picture.tobytes() == b.picture.tobytes()
        assert scenes.record(index).captions == a.captions
    other = scene_set(emoji, mix=scenes.mix, seed=1)
    assert any(other.scene(i) != scenes.scene(i) for i in range(3))
    with pytest.raises(IndexError, match="scene 1000000"):
        scenes.scene(10**6)


def test_workers_in_other_processes_make_the_same(scenes: SceneSet) -> None:
    again = pickle.loads(pickle.dumps(scenes))
    assert again.scene(7) == scenes.scene(7)
    assert again.sample(7).picture.tobytes() == scenes.sample(7).picture.tobytes()


def test_objects_are_large_whole_and_few(drawn: list[Scene]) -> None:
    for scene in drawn:
        assert 1 <= len(scene.objects) <= 4
        assert len({*labels(scene)}) <= 2
        for placed in scene.objects:
            left, top, right, bottom = placed.box
            assert max(right - left, bottom - top) == placed.size >= 56
            assert left >= 0
            assert top >= 0
            assert max(right, bottom) <= 128


def test_the_first_object_is_where_the_relation_says(drawn: list[Scene]) -> None:
    relations: Counter[str | None] = Counter()
    for scene in drawn:
        if scene.relation is None:
            continue
        (ax, ay), (bx, by) = centre(scene, 0), centre(scene, 1)
        a, b = scene.objects[0].box, scene.objects[1].box
        true = {
            "left of": a[2] <= b[0],
            "right of": b[2] <= a[0],
            "above": a[3] <= b[1],
            "below": b[3] <= a[1],
            "on": ay < by and b[1] <= a[3] < b[3] and abs(ax - bx) < 4,
            "riding": ay < by and b[1] < a[3] < b[3] and b[0] < ax < b[2],
        }
        assert true[scene.relation], scene
        relations[scene.relation] += 1
    assert min(relations.values()) > 50
    assert len(relations) == 6


def test_one_object_is_in_the_half_that_is_said(drawn: list[Scene]) -> None:
    places: Counter[str | None] = Counter()
    for scene in drawn:
        if scene.kind not in ("single", "place"):
            continue
        left, top, right, bottom = scene.objects[0].box
        x, y = centre(scene, 0)
        true = {
            "left": right <= 64,
            "right": left >= 64,
            "top": bottom <= 64,
            "bottom": top >= 64,
            "centre": abs(x - 64) < 8 and abs(y - 64) < 8,
        }
        assert scene.place is not None
        assert true[scene.place], scene
        places[scene.place] += 1
    assert min(places.values()) > 20
    assert len(places) == 5


def test_several_do_not_cover_each_other_and_are_counted(drawn: list[Scene]) -> None:
    counts: Counter[int] = Counter()
    for scene in drawn:
        if scene.kind != "count":
            continue
        for a, b in itertools.combinations([placed.box for placed in scene.objects], 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        counts[len(scene.objects)] += 1
        plural = scene.objects[0].subject.noun.plural
        assert plural is not None
        for caption in scene.captions:
            number = re.search(r"\b(two|three|four|[234])\b", caption)
            assert number is not None
            assert NUMBERS[number[1]] == len(scene.objects)
            assert plural in caption
    assert sorted(counts) == [2, 3, 4]


def test_captions_say_only_what_is_so(drawn: list[Scene]) -> None:
    for scene in drawn:
        assert 5 <= len(scene.captions) <= 6
        for caption in scene.captions:
            said = [name for name in BACKGROUNDS if f"{name} background" in caption]
            assert scene.background in said or (not said and scene.background == "white"), caption
            assert not said or max(said, key=len) == scene.background, caption
            styles = [style for style in STYLES if f"{style} style" in caption]
            assert styles in ([], [scene.style])
            for placed in scene.objects:
                words = placed.subject.noun
                assert words.bare in caption or (words.plural or words.bare) in caption
            assert "None" not in caption
            assert "{" not in caption
            assert not re.search(r"\ba [aeio]|\ban [^aeiou]", caption), caption


OPPOSITE = {"left": "right", "right": "left", "above": "below", "over": "below", "below": "above", "under": "above"}


def test_relations_are_told_from_both_ends_and_truly(drawn: list[Scene]) -> None:
    told: defaultdict[str, set[bool]] = defaultdict(set)
    for scene in drawn:
        if scene.kind != "pair":
            continue
        first, second = (placed.subject.noun.bare for placed in scene.objects)
        truth = (scene.relation or "").split()[0]
        for caption in scene.captions:
            found = re.search(
                rf"({first}|{second}).* (left|right|above|over|below|under)\b.*({first}|{second})", caption
            )
            assert found is not None, caption
            word = {"over": "above", "under": "below"}.get(found[2], found[2])
            assert word == (truth if found[1] == first else OPPOSITE[truth]), caption
            told[truth].add(found[1] == first)
    assert dict(told) == {word: {True, False} for word in ("left", "right", "above", "below")}


def test_the_background_is_the_colour_that_is_said(scenes: SceneSet, drawn: list[Scene]) -> None:
    for scene in drawn[:300]:
        pixels = scenes.compose(scene)
        free = np.ones((128, 128), bool)
        for placed in scene.objects:
            left, top, right, bottom = placed.box
            free[top:bottom, left:right] = False
        assert (pixels[free] == BACKGROUNDS[scene.background]).all()


def test_the_picture_is_what_pillow_composes(scenes: SceneSet, emoji: EmojiSet, drawn: list[Scene]) -> None:
    for scene in [s for s in drawn if s.kind in ("pair", "riding", "on", "single")][:40]:
        canvas = Image.new("RGBA", (128, 128), (*BACKGROUNDS[scene.background], 255))
        for placed in scene.objects if scene.kind == "riding" else reversed(scene.objects):
            picture = emoji.sample(placed.subject.index).picture
            left, top, right, bottom = placed.box
            cut = (
                picture.crop(picture.getbbox())
                .convert("RGBa")
                .resize((right - left, bottom - top), Image.Resampling.LANCZOS)
            )
            layer = Image.new("RGBA", (128, 128))
            layer.paste(cut.convert("RGBA"), (left, top))
            canvas = Image.alpha_composite(canvas, layer)
        difference = np.abs(np.asarray(canvas.convert("RGB")).astype(int) - scenes.compose(scene))
        assert difference.max() <= 3
        assert difference.mean() < 0.1


def test_objects_stand_out_from_the_background(emoji: EmojiSet) -> None:
    disc = Sprite(emoji.sample(0).picture, "disc")
    assert [name for name, colour in BACKGROUNDS.items() if not disc.shows_on(colour)] == ["red"]
    with pytest.raises(DataError, match="nothing is an empty picture"):
        Sprite(Image.new("RGBA", (8, 8)), "nothing")


def test_every_emoji_comes_as_often(emoji: EmojiSet) -> None:
    scenes = scene_set(emoji, mix=SceneMix(single=0, place=0, count=0, pair=1, on=0, riding=0))
    runs = 60
    all_drawn = [scenes.scene(i) for i in range(runs * len(emoji.subjects))]
    first = Counter(scene.objects[0].subject.key for scene in all_drawn)
    second = Counter(scene.objects[1].subject.key for scene in all_drawn)
    assert set(first.values()) == {runs}
    assert len(second) == len(emoji.subjects)
    assert max(second.values()) < 2 * runs  # partners held out pass their turn on
    assert min(second.values()) > runs / 3
    for key in first:
        sides = Counter(scene.relation for scene in all_drawn if scene.objects[0].subject.key == key)
        assert stats.chisquare([sides[name] for name in ("left of", "right of", "above", "below")]).pvalue > 1e-5


def test_kinds_and_backgrounds_are_drawn_as_the_mix_says(emoji: EmojiSet) -> None:
    mix = SceneMix(single=0, place=1, count=0, pair=1, on=0, riding=0, plain=0.5)
    drawn = [scene_set(emoji, mix=mix).scene(i) for i in range(1400)]
    kinds = Counter(scene.kind for scene in drawn)
    assert set(kinds) == {"place", "pair"}
    assert 620 < kinds["pair"] < 780
    backgrounds = Counter(scene.background for scene in drawn)
    assert set(backgrounds) == set(BACKGROUNDS) - {"red"}  # the colour of the test's drawings
    assert 600 < backgrounds["white"] < 800
    assert {placed.subject.style for scene in drawn for placed in scene.objects} == set(STYLES)
    assert all(len({placed.subject.style for placed in scene.objects}) == 1 for scene in drawn)


def test_what_is_held_out_is_never_trained_and_nothing_else_is_held_out(emoji: EmojiSet, drawn: list[Scene]) -> None:
    assert not any(is_held_out(scene.background, labels(scene)) for scene in drawn)
    held = scene_set(emoji, part="held-out")
    other = [held.scene(i) for i in range(600)]
    assert all(is_held_out(scene.background, labels(scene)) for scene in other)
    assert len({scene.kind for scene in other}) >= 4
    told = {caption for scene in drawn for caption in scene.captions}
    assert not told & {caption for scene in other for caption in scene.captions}


def test_a_tenth_is_held_out_in_any_order_and_style() -> None:
    colours = [is_held_out("blue", [f"thing {i}"]) for i in range(2000)]
    pairs = [is_held_out("white", [f"thing {i}", "cat"]) for i in range(2000)]
    for held in (colours, pairs):
        assert 140 < sum(held) < 260
    assert pairs == [is_held_out("white", ["cat", f"thing {i}"]) for i in range(2000)]
    assert not any(is_held_out("white", [f"thing {i}"] * 3) for i in range(500))


def test_riders_ride_mounts(drawn: list[Scene]) -> None:
    ridden = Counter(tuple(labels(scene)) for scene in drawn if scene.kind == "riding")
    assert ridden
    assert {rider for rider, _ in ridden} <= {"astronaut", "cook", "cat", "dog"}
    assert {mount for _, mount in ridden} <= {"horse", "elephant"}


def test_truth_is_plain_data(scenes: SceneSet, drawn: list[Scene]) -> None:
    for index in range(40):
        scene, fields = drawn[index], scenes.record(index).fields
        assert fields["licenses"] == ["CC0-1.0"]
        assert [thing["label"] for thing in fields["objects"]] == labels(scene)
        assert (fields["kind"], fields["background"], fields["relation"]) == (
            scene.kind,
            scene.background,
            scene.relation,
        )


def test_no_mirror_image_ever(scenes: SceneSet, emoji: EmojiSet) -> None:
    picture = Image.new("RGBA", (64, 64), (0, 0, 255, 255))
    picture.paste((255, 0, 0, 255), (0, 0, 32, 64))
    layer = Sprite(picture, "half red").layer(56)
    assert (layer.colour[:, :20, 0] == 255).all()
    assert (layer.colour[:, 36:, 2] == 255).all()


def test_sets_that_cannot_be_made(emoji: EmojiSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one subject"):
        SceneSet(emoji=emoji, subjects=[], seed=0, length=1)
    with pytest.raises(InvalidRequest, match="one of them more"):
        SceneMix(single=0, place=0, count=0, pair=0, on=0, riding=0)
    with pytest.raises(InvalidRequest, match="0 or more"):
        SceneMix(single=-1)
    with pytest.raises(InvalidRequest, match=r"1\.5"):
        SceneMix(plain=1.5)


def test_one_subject_is_enough_for_training_and_may_not_be_for_what_is_held_out(emoji: EmojiSet) -> None:
    cat = [subject for subject in emoji.subjects if subject.label == "cat"][:1]
    alone = SceneSet(emoji=emoji, subjects=cat, seed=0, length=50)
    assert {tuple(set(labels(alone.scene(i)))) for i in range(50)} == {("cat",)}
    free = [s for s in emoji.subjects if not any(is_held_out(name, [s.label]) for name in BACKGROUNDS)][:1]
    assert free, "no subject without a colour that is held out: take other labels for the tests"
    with pytest.raises(DataError, match="take more subjects"):
        SceneSet(emoji=emoji, subjects=free, seed=0, length=1, part="held-out").scene(0)


def test_without_play_an_object_is_always_where_it_was(emoji: EmojiSet) -> None:
    mix = SceneMix(single=0, place=1, count=1, pair=1, on=0, riding=0, filling=1, plain=1.0, play=False)
    boxes: dict[tuple[object, ...], set[tuple[int, ...]]] = {}
    scenes = scene_set(emoji, mix=mix)
    for index in range(400):
        scene = scenes.scene(index)
        place = (scene.kind, scene.place, scene.relation, len(scene.objects))
        for number, placed in enumerate(scene.objects):
            boxes.setdefault((*place, number, placed.subject.key), set()).add(placed.box)
            if scene.place == "centre":
                left, top, right, bottom = placed.box
                assert max(right - left, bottom - top) == 124
                assert abs(left + right - 128) <= 1 and abs(top + bottom - 128) <= 1
    assert {len(found) for found in boxes.values()} == {1}
    assert {key[1] for key in boxes} > {"centre", "left"}
