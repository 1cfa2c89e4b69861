"""Aspect-ratio buckets: pictures of like shape are batched together, so that none need be cut to a square.

As NovelAI described them (2022): sizes of about one area, each side a multiple; a picture goes to the size nearest to
its own shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One size in pixels."""

    width: int
    height: int

    @property
    def aspect(self) -> float:
        return self.width / self.height


def make_buckets(side: int, *, multiple: int = 64, max_aspect: float = 2.0) -> tuple[Bucket, ...]:
    """Every size of at most side² pixels, each as large as that allows, from 1 : max_aspect to max_aspect : 1.

    Ordered by shape, tall ones first; the square is always among them. `InvalidRequest` where `side` isn't a multiple.
    """
    if multiple < 1 or side < multiple or side % multiple:
        raise InvalidRequest(f"the buckets' side {side} must be a multiple of {multiple}")
    if max_aspect < 1:
        raise InvalidRequest(f"the buckets' max_aspect {max_aspect} must be at least 1")
    found: set[tuple[int, int]] = set()
    for width in range(multiple, side + 1, multiple):
        height = side * side // width // multiple * multiple
        if height <= width * max_aspect:
            found |= {(width, height), (height, width)}
    return tuple(Bucket(width=w, height=h) for w, h in sorted(found, key=lambda size: (size[0] / size[1], size)))


def bucket_of(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket of nearest shape, by the ratio of aspect ratios; of two as near, the wider."""
    aspect = math.log(width / height)
    return min(buckets, key=lambda bucket: (abs(math.log(bucket.aspect) - aspect), -bucket.aspect))
