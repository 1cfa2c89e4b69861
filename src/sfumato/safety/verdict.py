"""What a checker says about a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

Status = Literal["unchecked", "safe", "flagged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One checker's opinion of one picture, as data for the result and the metadata.

    `scores` are the checker's own numbers by name, and `flagged_by` the names among them that flagged the picture.
    """

    status: Status
    checker: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    flagged_by: tuple[str, ...] = ()


UNCHECKED = Verdict(status="unchecked")

Checker = Callable[[Sequence[Image.Image]], list[Verdict]]
"""Judges pictures, each by itself: a verdict a picture, in their order."""


def judge(checker: str, scores: Mapping[str, float], flagged_by: tuple[str, ...]) -> Verdict:
    """Make the verdict of a checker's scores: flagged if anything flagged the picture, else safe."""
    return Verdict(
        status="flagged" if flagged_by else "safe", checker=checker, scores=dict(scores), flagged_by=flagged_by
    )
