"""Scenes composed of emoji, with captions that are true because the composer knows what it did.

A scene is a pure function of (seed, index): any sample can be made again, and none need be stored.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image

from sfumato.data.counter_rng import Stream, order_key, permuted, share
from sfumato.data.samples import Dataset, Record, Sample
from sfumato.data.transforms import Colour, Pixels
from sfumato.errors import DataError, InvalidRequest
from sfumato.pocket.dataset.emoji import Subject
from sfumato.pocket.dataset.scene_layouts import (
    SIDE,
    Spot,
    place_beside,
    place_filling,
    place_on,
    place_riding,
    place_several,
    place_single,
)
from sfumato.pocket.dataset.scene_words import count_captions, pair_captions, single_captions
from sfumato.pocket.dataset.sprites import Sprites

BACKGROUNDS: Mapping[str, Colour] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (222, 45, 45),
    "orange": (255, 140, 0),
    "yellow": (255, 221, 51),
    "green": (46, 160, 67),
    "blue": (38, 92, 222),
    "light blue": (150, 206, 255),
    "purple": (130, 60, 180),
    "pink": (255, 158, 200),
    "brown": (128, 78, 40),
}
_CANVASES: Mapping[str, Pixels] = {
    name: np.full((SIDE, SIDE, 3), colour, np.uint8) for name, colour in BACKGROUNDS.items()
}
HELD_OUT = 0.1  # of the combinations of a subject with a colour, and of two subjects

_HALVES = ("left", "right", "top", "bottom")
_BESIDE = ("left of", "right of", "above", "below")
_RIDER_SUBGROUPS = frozenset({"person-role", "person-fantasy"})
# Drawn whole in every style: a head can neither ride nor be ridden.
_RIDERS = frozenset({
    "ghost", "monkey", "cat", "dog", "penguin", "teddy bear", "rabbit", "man", "woman", "boy", "girl", "person",
    "child", "old man", "old woman",
})  # fmt: skip
_MOUNTS = frozenset({
    "horse", "elephant", "camel", "two-hump camel", "cow", "ox", "donkey", "zebra", "giraffe", "tiger", "leopard",
    "llama", "rhinoceros", "hippopotamus", "water buffalo", "bison", "ram", "ewe", "goat", "pig", "mammoth",
    "kangaroo", "crocodile", "turtle", "sauropod", "T-Rex", "dragon", "whale", "dolphin", "rooster", "snail",
    "bicycle", "motorcycle", "motor scooter", "skateboard",
})  # fmt: skip
_BUSY = ("feeding", "pregnant", "holding")  # people whose picture shows something else as well

Kind = Literal["single", "place", "count", "pair", "on", "riding", "filling"]
Part = Literal["train", "held-out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneMix:
    """How often each kind is drawn, as weights; `plain` is the share of white backgrounds among all scenes. Wrong
    values raise `InvalidRequest`."""

    single: Annotated[float, "one object in the middle"] = 0.35
    place: Annotated[float, "one object in a half of the picture"] = 0.15
    count: Annotated[float, "two to four of one object"] = 0.15
    pair: Annotated[float, "two objects side by side"] = 0.25
    on: Annotated[float, "one object standing on another"] = 0.05
    riding: Annotated[float, "a rider on a mount"] = 0.05
    filling: Annotated[float, "one object from border to border, as it was drawn"] = 0.0
    play: Annotated[bool, "objects of a kind vary a little in size and place"] = True
    plain: Annotated[float, "share of white backgrounds, among all scenes"] = 0.35

    def __post_init__(self) -> None:
        weights = [self.weight(kind) for kind in _PLANS]
        if min(weights) < 0 or not sum(weights) > 0:
            raise InvalidRequest(f"the weights of a scene mix must be 0 or more, and one of them more: {weights}")
        if not 0 <= self.plain <= 1:
            raise InvalidRequest(f"the share of plain backgrounds {self.plain} must lie between 0 and 1")

    def weight(self, kind: Kind) -> float:
        """How often one kind is drawn, relative to the others."""
        value: float = getattr(self, kind)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A subject in a scene; `box` is (left, top, right, bottom) in pixels around what is visible of it alone."""

    subject: Subject
    size: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a composed picture shows. `objects` are in the order of `relation`: the first is left of the second."""

    kind: Kind
    style: str
    background: str
    objects: tuple[Placed, ...]
    place: str | None
    relation: str | None
    captions: tuple[str, ...]

    def truth(self) -> dict[str, Any]:
        """All of the scene as plain JSON values."""
        return {
            "kind": self.kind,
            "style": self.style,
            "background": self.background,
            "place": self.place,
            "relation": self.relation,
            "objects": [
                {"label": placed.subject.label, "key": placed.subject.key, "box": list(placed.box)}
                for placed in self.objects
            ],
            "licenses": sorted({placed.subject.license for placed in self.objects}),
        }


def is_held_out(background: str, labels: Sequence[str]) -> bool:
    """Whether a combination is kept from training: a hash of the words decides, in every style and order alike.

    A subject on white is never held out, nor is a subject with itself.
    """
    colour = background != "white" and any(share("background", label, background) < HELD_OUT for label in labels)
    return colour or any(_pair_held_out(a, b) for a, b in itertools.combinations(sorted(set(labels)), 2))


def _can_ride(subject: Subject) -> bool:
    role = subject.subgroup in _RIDER_SUBGROUPS and not any(word in subject.label for word in _BUSY)
    return role or subject.label in _RIDERS


def _pair_held_out(a: str, b: str) -> bool:
    return share("pair", *sorted((a, b))) < HELD_OUT


@dataclass(slots=True, kw_only=True)
class SceneSet:
    """Scenes of some subjects as a data set of any length.

    In each run of `len(subjects)` scenes every subject is the first one once; the second one is a subject of the same
    style, all of them equally often. The part "train" has no combination of which `is_held_out` is true, "held-out"
    has nothing else (and neither counts on white nor single objects on white, which are never held out).
    Riders and mounts are drawn from the subjects that can be one. Raises `DataError` without a subject.
    """

    emoji: Dataset
    subjects: Sequence[Subject]
    seed: int
    length: int
    mix: SceneMix = field(default_factory=SceneMix)
    part: Part = "train"
    sprites: Sprites = field(init=False, repr=False)
    _styles: Mapping[str, Sequence[Subject]] = field(init=False, repr=False)
    _ranks: Mapping[str, int] = field(init=False, repr=False)
    _riders: Mapping[str, Sequence[Subject]] = field(init=False, repr=False)
    _mounts: Mapping[str, Sequence[Subject]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.subjects:
            raise DataError("scenes need at least one subject: take more styles or groups")
        self.sprites = Sprites(self.emoji)
        styles: dict[str, list[Subject]] = {}
        ranks: dict[str, int] = {}
        for subject in self.subjects:
            members = styles.setdefault(subject.style, [])
            ranks[subject.key] = len(members)
            members.append(subject)
        self._styles, self._ranks = styles, ranks
        self._riders = {style: [s for s in members if _can_ride(s)] for style, members in styles.items()}
        self._mounts = {style: [s for s in members if s.label in _MOUNTS] for style, members in styles.items()}

    def __len__(self) -> int:
        return self.length

    def record(self, index: int) -> Record:
        scene = self.scene(index)
        return Record(key=f"scene-{self.seed}-{index}", captions=scene.captions, fields=scene.truth())

    def sample(self, index: int) -> Sample:
        scene = self.scene(index)
        picture = Image.fromarray(self.compose(scene))
        return Sample(key=f"scene-{self.seed}-{index}", captions=scene.captions, fields=scene.truth(), picture=picture)

    def scene(self, index: int) -> Scene:
        """What the sample shows, without drawing it. `DataError` where no subject allows what the part asks for."""
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        stream = Stream("scene", self.seed, index)
        kind = self._kind(stream)
        count = len(self.subjects)
        block, place = divmod(index, count)
        key = order_key("first", self.seed, block)
        for step in range(count):
            scene = _PLANS[kind](self, self.subjects[permuted((place + step) % count, count, key)], stream, block)
            if is_held_out(scene.background, [placed.subject.label for placed in scene.objects]) == self._held_out:
                return scene
        raise DataError(f"no {kind!r} scene of these {count} subjects is {self.part}: take more subjects")

    def compose(self, scene: Scene) -> Pixels:
        """Draw a scene: (128, 128, 3) uint8."""
        canvas = _CANVASES[scene.background].copy()
        # A rider sits behind the mount's back; whatever stands on something is in front of it.
        order = scene.objects if scene.kind == "riding" else reversed(scene.objects)
        for placed in order:
            self.sprites[placed.subject.index].layer(placed.size).lay_on(canvas, placed.box[0], placed.box[1])
        return canvas

    @property
    def _held_out(self) -> bool:
        return self.part == "held-out"

    def _kind(self, stream: Stream) -> Kind:
        ends = list(itertools.accumulate(self.mix.weight(kind) for kind in _PLANS))
        return list(_PLANS)[bisect.bisect_right(ends, stream.uniform(0, ends[-1]))]

    def background(self, subjects: Sequence[Subject], stream: Stream) -> str:
        """A colour that all sprites stand out from and that the part allows; white always fits.

        In the held-out part a pair that is held out itself may have any such colour; anything else needs one that is.
        """
        plain = stream.chance(self.mix.plain)
        labels = [subject.label for subject in subjects]
        colours = stream.shuffled([name for name in BACKGROUNDS if name != "white"])
        for name in ["white", *colours] if plain else [*colours, "white"]:
            fits = is_held_out(name, labels) == self._held_out
            if fits and (name == "white" or all(self._shows(subject, name) for subject in subjects)):
                return name
        return "white"

    def partner(self, first: Subject, block: int) -> Subject | None:
        """The second subject of a pair: what a random order of the style's subjects puts in the first one's place, or
        the next there that isn't the same thing and that the part allows. None where there is none."""
        members = self._styles[first.style]
        key = order_key("second", self.seed, block, first.style)
        for step in range(len(members)):
            second = members[permuted((self._ranks[first.key] + step) % len(members), len(members), key)]
            if second.label != first.label and _pair_held_out(first.label, second.label) == self._held_out:
                return second
        return None

    def riding(self, style: str, stream: Stream) -> tuple[Subject, Subject] | None:
        """A rider and a mount of a style that the part allows, None where there are none."""
        riders, mounts = self._riders[style], self._mounts[style]
        for rider in stream.shuffled(riders):
            for mount in stream.shuffled(mounts):
                if _pair_held_out(rider.label, mount.label) == self._held_out:
                    return rider, mount
        return None

    def placed(self, subject: Subject, spot: Spot) -> Placed:
        """A subject with its box."""
        width, height = self.sprites[subject.index].size(spot.size)
        box = (spot.left, spot.top, spot.left + width, spot.top + height)
        return Placed(subject=subject, size=spot.size, box=box)

    def _shows(self, subject: Subject, background: str) -> bool:
        return self.sprites[subject.index].shows_on(BACKGROUNDS[background])


Plan = Callable[[SceneSet, Subject, Stream, int], Scene]


def _single(scenes: SceneSet, first: Subject, stream: Stream, block: int) -> Scene:
    return _one(scenes, first, "centre", stream)


def _centred(scenes: SceneSet, first: Subject, stream: Stream, block: int) -> Scene:
    """One object as the mix shows them: in the middle, or from border to border where it has only those."""
    return (_single if scenes.mix.single else _filling)(scenes, first, stream, block)


def _in_a_half(scenes: SceneSet, first: Subject, stream: Stream, block: int) -> Scene:
    return _one(scenes, first, stream.choice(_HALVES), stream)


def _one(scenes: SceneSet, first: Subject, place: str, stream: Stream) -> Scene:
    background = scenes.background([first], stream)
    spot = place_single(scenes.sprites[first.index], place, stream, play=scenes.mix.play)
    return _alone(scenes, first, place, background, spot)


def _filling(scenes: SceneSet, first: Subject, stream: Stream, block: int) -> Scene:
    background = scenes.background([first], stream)
    return _alone(scenes, first, "centre", background, place_filling(scenes.sprites[first.index]))


def _alone(scenes: SceneSet, first: Subject, place: str, background: str, spot: Spot) -> Scene:
    return Scene(
        kind="single" if place == "centre" else "place",
        style=first.style,
        background=background,
        objects=(scenes.placed(first, spot),),
        place=place,
        relation=None,
        captions=single_captions(first, place, background),
    )


def _several(scenes: SceneSet, first: Subject, stream: Stream, block: int) -> Scene:
    if first.noun.plural is None:
        return _centred(scenes, first, stream, block)
    number = stream.between(2, 4)
    background = scenes.background([first], stream)
    spots = place_several(scenes.sprites[first.index], number, stream, play=scenes.mix.play)
    return Scene(
        kind="count",
        style=first.style,
        background=background,
        objects=tuple(scenes.placed(first, spot) for spot in spots),
        place=None,
        relation=None,
        captions=count_captions(first, number, background),
    )


def _pair(scenes: SceneSet, first: Subject, stream: Stream, block: int) -> Scene:
    second = scenes.partner(first, block)
    if second is None:
        return _in_a_half(scenes, first, stream, block)
    relation = stream.choice(_BESIDE)
    spots = place_beside(
        scenes.sprites[first.index], scenes.sprites[second.index], relation, stream, play=scenes.mix.play
    )
    return _two(scenes, "pair", (first, second), spots, relation, stream)


def _standing(scenes: SceneSet, first: Subject, stream: Stream, block: int) -> Scene:
    second = scenes.partner(first, block)
    if second is None:
        return _in_a_half(scenes, first, stream, block)
    spots = place_on(scenes.sprites[first.index], scenes.sprites[second.index], stream)
    return _two(scenes, "on", (first, second), spots, "on", stream)


def _riding(scenes: SceneSet, first: Subject, stream: Stream, block: int) -> Scene:
    found = scenes.riding(first.style, stream)
    if found is None:
        return _centred(scenes, first, stream, block)
    rider, mount = found
    spots = place_riding(scenes.sprites[rider.index], scenes.sprites[mount.index], stream)
    return _two(scenes, "riding", (rider, mount), spots, "riding", stream)


def _two(
    scenes: SceneSet,
    kind: Kind,
    subjects: tuple[Subject, Subject],
    spots: tuple[Spot, Spot],
    relation: str,
    stream: Stream,
) -> Scene:
    background = scenes.background(subjects, stream)
    return Scene(
        kind=kind,
        style=subjects[0].style,
        background=background,
        objects=tuple(scenes.placed(subject, spot) for subject, spot in zip(subjects, spots, strict=True)),
        place=None,
        relation=relation,
        captions=pair_captions(*subjects, relation, background),
    )


_PLANS: Mapping[Kind, Plan] = {
    "single": _single,
    "place": _in_a_half,
    "count": _several,
    "pair": _pair,
    "on": _standing,
    "riding": _riding,
    "filling": _filling,
}
