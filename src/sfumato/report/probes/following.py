"""Whether a picture shows what its composed caption says: background, number, place and relation, from the pixels and
from the composer's truth (`data.scenes.Scene.truth`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.pictures.pixels import Pixels
from sfumato.pocket.dataset.scenes import BACKGROUNDS
from sfumato.report.features.clip_features import ClipFeatures

Truth = Mapping[str, Any]

_APART = 40.0  # how far, in RGB, a pixel is from the background to belong to an object
_LEAST = 0.004  # of the picture: a smaller patch is a speck
_RING = 2  # pixels at the border, where composed scenes show the background alone
_APART_KINDS = frozenset({"single", "place", "count", "pair"})  # objects of these don't touch


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A connected region that isn't background: its box (left, top, right, bottom), its pixels and its middle."""

    box: tuple[int, int, int, int]
    size: int
    middle: tuple[float, float]


def background_of(picture: Pixels) -> tuple[str, NDArray[np.float64]]:
    """The named colour nearest to the border's median, and that median (3,)."""
    ring = np.concatenate(
        [
            picture[:_RING].reshape(-1, 3),
            picture[-_RING:].reshape(-1, 3),
            picture[:, :_RING].reshape(-1, 3),
            picture[:, -_RING:].reshape(-1, 3),
        ]
    )
    colour = np.median(ring, axis=0)
    names = list(BACKGROUNDS)
    distances = [float(np.linalg.norm(colour - np.array(BACKGROUNDS[name]))) for name in names]
    return names[int(np.argmin(distances))], colour


def patches(picture: Pixels) -> list[Patch]:
    """The objects of a picture on a plain background, largest first."""
    _, colour = background_of(picture)
    apart = np.linalg.norm(picture.astype(np.float64) - colour, axis=-1) > _APART
    labels = _connected(apart)
    found = []
    for label in range(1, int(labels.max(initial=0)) + 1):
        ys, xs = np.nonzero(labels == label)
        if len(xs) >= _LEAST * apart.size:
            box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
            found.append(Patch(box=box, size=len(xs), middle=(float(xs.mean()), float(ys.mean()))))
    return sorted(found, key=lambda patch: -patch.size)


def background_follows(picture: Pixels, truth: Truth, clip: ClipFeatures | None) -> bool | None:
    return bool(background_of(picture)[0] == truth["background"])


def count_follows(picture: Pixels, truth: Truth, clip: ClipFeatures | None) -> bool | None:
    """Asked where objects don't touch; a drawing of several pieces counts as several, so the truth's own pictures
    don't all pass either."""
    if truth["kind"] not in _APART_KINDS:
        return None
    return len(patches(picture)) == len(truth["objects"])


def place_follows(picture: Pixels, truth: Truth, clip: ClipFeatures | None) -> bool | None:
    """Asked of a single object in a half: its middle is there."""
    if truth["kind"] != "place":
        return None
    found = patches(picture)
    if not found:
        return False
    weight = sum(patch.size for patch in found)
    x, y = (sum(patch.middle[axis] * patch.size for patch in found) / weight for axis in (0, 1))
    height, width = picture.shape[:2]
    inside: dict[str, bool] = {
        "left": x < width / 2,
        "right": x > width / 2,
        "top": y < height / 2,
        "bottom": y > height / 2,
    }
    return inside[truth["place"]]


def relation_follows(picture: Pixels, truth: Truth, clip: ClipFeatures | None) -> bool | None:
    """Asked of two objects beside each other, with a CLIP model to say which is which: the two largest patches, named
    as they fit best, stand as the caption says."""
    if truth["kind"] != "pair" or clip is None:
        return None
    found = patches(picture)[:2]
    if len(found) < 2:
        return False
    crops = [_crop(picture, patch) for patch in found]
    similar = clip.features(crops)["clip"] @ clip.texts([thing["label"] for thing in truth["objects"]]).T  # (2, 2)
    straight = similar[0, 0] + similar[1, 1] >= similar[0, 1] + similar[1, 0]
    first, second = found if straight else found[::-1]
    dx, dy = (first.middle[axis] - second.middle[axis] for axis in (0, 1))
    stands: dict[str, bool] = {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}
    return stands[truth["relation"]]


Check = Callable[[Pixels, Truth, ClipFeatures | None], bool | None]
CHECKS: Mapping[str, Check] = MappingProxyType(
    {"background": background_follows, "count": count_follows, "place": place_follows, "relation": relation_follows}
)
"""Each says whether a picture follows, or None where its caption doesn't ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """The number of pictures of which something was asked, and of those that show it."""

    asked: int
    shown: int


def followed(pictures: Sequence[Pixels], truths: Sequence[Truth], clip: ClipFeatures | None) -> dict[str, Following]:
    """Every check over all pictures. Beside a model's pictures, run it over the composer's own (the most that can be
    reached) and over shuffled ones (what chance gives)."""
    found = {}
    for name, check in CHECKS.items():
        answers = [check(picture, truth, clip) for picture, truth in zip(pictures, truths, strict=True)]
        asked = [answer for answer in answers if answer is not None]
        found[name] = Following(asked=len(asked), shown=sum(asked))
    return found


def _crop(picture: Pixels, patch: Patch) -> Pixels:
    left, top, right, bottom = patch.box
    return np.ascontiguousarray(picture[top:bottom, left:right])


def _connected(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Numbers from 1 for each region of 4-connected pixels, 0 outside, by flooding from each pixel not yet seen."""
    labels = np.zeros(mask.shape, np.int64)
    height, width = mask.shape
    label = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        label += 1
        waiting = [(int(start[0]), int(start[1]))]
        labels[start] = label
        while waiting:
            y, x = waiting.pop()
            for other in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= other[0] < height and 0 <= other[1] < width and mask[other] and not labels[other]:
                    labels[other] = label
                    waiting.append(other)
    return labels
