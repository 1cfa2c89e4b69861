"""Where a scene's objects go: boxes in pixels on a 128×128 picture, with a little play drawn from a stream.

At most four objects, each at least 56 pixels in its longer side: a latent of 16×16 holds seven cells for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sfumato.data.counter_rng import Stream
from sfumato.pocket.dataset.sprites import Sprite

SIDE = 128
FILLING = 124  # the drawing as it is, but for the border
LARGE = (88, 100, 112)  # alone in the middle
SMALL = (56, 60)  # beside something, or in one half of the picture
MOUNT = (76, 84)
_EDGE = 2  # pixels kept free at the picture's border
_PLAY = 5
_OVERLAP = 0.12  # of its height that an object standing on another reaches into it
_SADDLE = (0.35, 0.7)  # where along a mount a rider may sit
_SEAT_DEPTH = 0.16  # of the rider's height that is behind the mount's back


class Spot(NamedTuple):
    """A sprite's size (its longer side) and the upper left corner of its layer."""

    size: int
    left: int
    top: int


# Centres as shares of the picture's side.
_PLACES: Mapping[str, tuple[float, float]] = {
    "centre": (0.5, 0.5),
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
}
_COUNTS: Mapping[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    2: (((0.25, 0.5), (0.75, 0.5)), ((0.5, 0.25), (0.5, 0.75))),
    3: (((0.25, 0.25), (0.75, 0.25), (0.5, 0.75)), ((0.5, 0.25), (0.25, 0.75), (0.75, 0.75))),
    4: (((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)),),
}
_SIDES: Mapping[str, tuple[str, str]] = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}


def place_filling(sprite: Sprite) -> Spot:
    """One object from border to border."""
    width, height = sprite.size(FILLING)
    return Spot(FILLING, (SIDE - width) // 2, (SIDE - height) // 2)


def place_single(sprite: Sprite, place: str, stream: Stream, *, play: bool = True) -> Spot:
    """One object: large in the middle, small in a half. Without `play` always at one size and place, here as below."""
    size = _size(LARGE if place == "centre" else SMALL, stream, play)
    return _around(sprite, size, _PLACES[place], stream, play)


def place_several(sprite: Sprite, number: int, stream: Stream, *, play: bool = True) -> list[Spot]:
    """Two beside or above one another, three in a triangle, four in a square; all of one size."""
    size = _size(SMALL, stream, play)
    centres = stream.choice(_COUNTS[number]) if play else _COUNTS[number][0]
    return [_around(sprite, size, centre, stream, play) for centre in centres]


def place_beside(
    first: Sprite, second: Sprite, relation: str, stream: Stream, *, play: bool = True
) -> tuple[Spot, Spot]:
    """Two objects in opposite halves."""
    size = _size(SMALL, stream, play)
    a, b = (_PLACES[side] for side in _SIDES[relation])
    return _around(first, size, a, stream, play), _around(second, size, b, stream, play)


def place_on(upper: Sprite, lower: Sprite, stream: Stream) -> tuple[Spot, Spot]:
    """The first object standing on the second: its lower edge where the other begins below its middle."""
    size = stream.choice(SMALL)
    (upper_width, upper_height), (width, height) = upper.size(size), lower.size(size)
    edge = lower.layer(size).upper_edge()
    middle = edge[width * 3 // 8 : width * 5 // 8 + 1]
    sunk = min(int(np.median(middle)), height // 3) + round(upper_height * _OVERLAP)
    total = upper_height + height - sunk
    start = max((SIDE - total) // 2, _EDGE) + (stream.between(0, _PLAY) if total < SIDE - 4 * _PLAY else 0)
    centre = SIDE // 2 + stream.between(-_PLAY, _PLAY)
    return (
        Spot(size, centre - upper_width // 2, start),
        Spot(size, centre - width // 2, start + upper_height - sunk),
    )


def place_riding(rider: Sprite, mount: Sprite, stream: Stream) -> tuple[Spot, Spot]:
    """The rider above the mount's saddle, the lowest place along its back; the mount hides the rider's lower end."""
    rider_size, mount_size = stream.choice(SMALL), stream.choice(MOUNT)
    (rider_width, rider_height), (width, height) = rider.size(rider_size), mount.size(mount_size)
    edge = mount.layer(mount_size).upper_edge()
    half = max(rider_width // 4, 2)
    columns = range(round(width * _SADDLE[0]), round(width * _SADDLE[1]) + 1)
    backs = [int(np.median(edge[max(x - half, 0) : x + half])) for x in columns]
    seat = max(backs)
    deepest = [x for x, back in zip(columns, backs, strict=True) if back == seat]
    saddle = deepest[len(deepest) // 2]
    lift = rider_height - round(rider_height * _SEAT_DEPTH) - min(seat, height // 2)
    top = min(max((SIDE + lift - height) // 2, lift + _EDGE), SIDE - _EDGE - height)
    left = (SIDE - width) // 2 + stream.between(-_PLAY, _PLAY)
    return (
        _inside(rider_size, left + saddle - rider_width // 2, max(top - lift, _EDGE), rider_width, rider_height),
        _inside(mount_size, left, top, width, height),
    )


def _size(sizes: tuple[int, ...], stream: Stream, play: bool) -> int:
    return stream.choice(sizes) if play else sizes[0]


def _around(sprite: Sprite, size: int, centre: tuple[float, float], stream: Stream, play: bool) -> Spot:
    """Near a centre, never over the picture's middle line unless that is where the centre is."""
    width, height = sprite.size(size)
    left = round(centre[0] * SIDE) - width // 2 + (stream.between(-_PLAY, _PLAY) if play else 0)
    top = round(centre[1] * SIDE) - height // 2 + (stream.between(-_PLAY, _PLAY) if play else 0)
    return Spot(size, _within_half(left, width, centre[0]), _within_half(top, height, centre[1]))


def _within_half(start: int, length: int, centre: float) -> int:
    low, high = _EDGE, SIDE - _EDGE
    if centre < 0.5:
        high = SIDE // 2
    elif centre > 0.5:
        low = SIDE // 2
    return min(max(start, low), high - length)


def _inside(size: int, left: int, top: int, width: int, height: int) -> Spot:
    return Spot(size, min(max(left, _EDGE), SIDE - _EDGE - width), min(max(top, _EDGE), SIDE - _EDGE - height))
