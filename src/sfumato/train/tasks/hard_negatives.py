"""Captions that are wrong in one word: what a retriever must tell from the right one by more than its nouns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from sfumato.pocket.dataset.scenes import BACKGROUNDS

_SIDES: Mapping[str, str] = {
    "left": "right", "top": "bottom", "above": "below", "over": "under", "upper": "lower",
}  # fmt: skip
_OPPOSITE = {**_SIDES, **{second: first for first, second in _SIDES.items()}}
_SIDE = re.compile(rf"\b({'|'.join(_OPPOSITE)})\b")
_COLOUR = re.compile(rf"\b({'|'.join(sorted(BACKGROUNDS, key=len, reverse=True))})(?= background\b)")


def hard_negative(caption: str, generator: torch.Generator) -> str | None:
    """The caption with its sides swapped or its background's colour changed, None where it speaks of neither.

    "on top" is left as it is: turned round, "a cat on bottom of a box" is no English, and gives itself away.
    """
    changes = []
    if _SIDE.search(caption) and "on top" not in caption:
        changes.append(_SIDE.sub(lambda found: _OPPOSITE[found[0]], caption))
    colour = _COLOUR.search(caption)
    if colour:
        others = [name for name in BACKGROUNDS if name != colour[0]]
        changes.append(caption[: colour.start()] + _drawn(others, generator) + caption[colour.end() :])
    return _drawn(changes, generator) if changes else None


def _drawn(options: Sequence[str], generator: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (), generator=generator))]
