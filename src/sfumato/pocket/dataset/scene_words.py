"""What a scene is called: several true captions each, from a word to every attribute.

What a caption leaves out is the default: one object, in the middle, on white. So a short prompt has one meaning, and
whatever is said is always true. The style may be left out; every style then fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sfumato.pocket.dataset.emoji import STYLE_WORDS, Subject
from sfumato.pocket.dataset.nouns import with_article

NUMBERS = {2: "two", 3: "three", 4: "four"}

# {a} and {b} with their articles, {A} and {B} without. The first of each is the plainest.
PLACES: Mapping[str, tuple[str, ...]] = {
    "centre": ("{a}", "{A}", "{a} in the middle", "a picture of {a}"),
    "left": ("{a} on the left", "{A} on the left", "{a} on the left side", "{a} in the left half"),
    "right": ("{a} on the right", "{A} on the right", "{a} on the right side", "{a} in the right half"),
    "top": ("{a} at the top", "{A} at the top", "{a} in the upper half", "{a} in the top half"),
    "bottom": ("{a} at the bottom", "{A} at the bottom", "{a} in the lower half", "{a} in the bottom half"),
}
RELATIONS: Mapping[str, tuple[str, ...]] = {
    "left of": ("{a} left of {b}", "{A} left of {B}", "{a} to the left of {b}", "{b} to the right of {a}"),
    "right of": ("{a} right of {b}", "{A} right of {B}", "{a} to the right of {b}", "{b} to the left of {a}"),
    "above": ("{a} above {b}", "{A} above {B}", "{a} over {b}", "{b} below {a}"),
    "below": ("{a} below {b}", "{A} below {B}", "{a} under {b}", "{b} above {a}"),
    "on": ("{a} on {b}", "{A} on {B}", "{a} on top of {b}", "{b} with {a} on top"),
    "riding": ("{a} riding {b}", "{A} riding {B}", "{a} on the back of {b}", "{b} ridden by {a}"),
}
COUNTS = ("{number} {plural}", "{digit} {plural}", "a group of {number} {plural}", "{plural}, {number} of them")


def single_captions(subject: Subject, place: str, background: str) -> tuple[str, ...]:
    """Captions of one object."""
    words = subject.noun
    return _captions([form.format(a=words.single, A=words.bare) for form in PLACES[place]], subject.style, background)


def count_captions(subject: Subject, number: int, background: str) -> tuple[str, ...]:
    """Captions of several of one object, which must have a plural."""
    forms = [form.format(number=NUMBERS[number], digit=number, plural=subject.noun.plural) for form in COUNTS]
    return _captions(forms, subject.style, background)


def pair_captions(first: Subject, second: Subject, relation: str, background: str) -> tuple[str, ...]:
    """Captions of two different objects, of which the first is where `relation` says."""
    a, b = first.noun, second.noun
    forms = [form.format(a=a.single, A=a.bare, b=b.single, B=b.bare) for form in RELATIONS[relation]]
    return _captions(forms, first.style, background)


def _on(form: str, background: str) -> str:
    return f"{form} on {with_article(background)} background"


def _captions(forms: Sequence[str], style: str, background: str) -> tuple[str, ...]:
    """Six captions from four ways to name the objects. Only white may go unsaid."""
    plainest, bare, longer, other = forms
    word = STYLE_WORDS.get(style, style)
    white = background == "white"
    captions = (
        plainest if white else _on(plainest, background),
        bare if white else f"{bare}, {background} background",
        _on(longer, background),
        f"{other if white else _on(other, background)}, {word} style",
        f"{word} style, {plainest}, {background} background",
        f"{longer}, white background" if white else f"{with_article(background)} background with {plainest}",
    )
    return tuple(dict.fromkeys(captions))
