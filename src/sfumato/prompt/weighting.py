"""The prompt syntax of AUTOMATIC1111's web UI: `(word)`, `(word:1.2)`, `[word]`, `\\(`, `BREAK` and `AND`.

Read as that program reads it (modules/prompt_parser.py), quirks included: a bracket nobody closes runs to the end, one
nobody opened is text, a backslash before anything but a bracket or a backslash vanishes, and a number after the last
colon weighs the whole condition even without `AND` ("at 12:30" weighs 30). Three departures: `BREAK` within brackets
breaks (there it turns into the word with a negative weight), a number that isn't one is an error (there a crash), and
prompt editing `[from:to:when]` is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.errors import InvalidRequest

# What a bracket without a number multiplies by, and which bracket opens what a closing one closes.
OPENING = {"(": 1.1, "[": 1 / 1.1}
OPENED_BY = {")": "(", "]": "["}

# 1.1¹⁰⁰ is 13,781: nobody means that, and the time to parse stays linear.
MAX_NESTING = 100

# Far beyond sense, and far from overflowing float32 where the weights multiply.
MAX_WEIGHT = 1e6

PIECE = re.compile(
    r"""
      \\(?P<escaped>[\\()\[\]])
    | :\s*(?P<weight>[+-]?[.\d]+)\s*\)
    | (?P<bracket>[()\[\]])
    | \\
    | :
    | [^\\()\[\]:]+
    """,
    re.VERBOSE,
)
AND = re.compile(r"\bAND\b")
BREAK = re.compile(r"\bBREAK\b")
NUMBER = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """Text of one weight. `origin[i]` is where character i of `text` stands in the prompt as typed."""

    text: str
    weight: float
    origin: Sequence[int]


Section = tuple[Fragment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subprompt:
    """One condition of a prompt with `AND`: its text, from character `start` of the prompt, and its weight."""

    text: str
    weight: float
    start: int


def split_conditions(prompt: str) -> tuple[Subprompt, ...]:
    """The conditions between `AND`s; each may end in `: weight` (composable diffusion, Liu et al. 2022)."""
    conditions = []
    start = 0
    for end, following in [*((match.start(), match.end()) for match in AND.finditer(prompt)), (len(prompt), 0)]:
        text, weight = prompt[start:end], 1.0
        head, colon, tail = text.rpartition(":")
        if colon and NUMBER.fullmatch(tail.strip()):
            text, weight = head, _bounded(float(tail.strip()))
        conditions.append(Subprompt(text=text.rstrip(), weight=weight, start=start))
        start = following
    return tuple(conditions)


def parse_attention(text: str, start: int = 0) -> tuple[Section, ...]:
    """The sections between `BREAK`s, each a run of fragments; neighbours of equal weight are one fragment.

    Fragments are never empty, sections may be. `start` is where `text` begins in the prompt, for `Fragment.origin`.
    Raises `InvalidRequest` for a weight that is no number or beyond ±10⁶, and for more than 100 brackets open at once.
    """
    runs = _Runs()
    for match in PIECE.finditer(text):
        here = start + match.start()
        if match["escaped"] is not None:
            runs.add(match["escaped"], here + 1)
        elif match["weight"] is not None and runs.open["("]:
            runs.close("(", _number(match["weight"]))
        elif match["bracket"] in OPENING:
            runs.push(match["bracket"])
        elif match["bracket"] is not None and runs.open[OPENED_BY[match["bracket"]]]:
            opening = OPENED_BY[match["bracket"]]
            runs.close(opening, OPENING[opening])
        elif match[0] != "\\":
            _add_text(runs, match[0], here)
    for opening, multiplier in OPENING.items():
        for position in runs.open[opening]:
            runs.multiply(position, multiplier)
    return tuple(_merged(section) for section in runs.sections())


class _Runs:
    """The pieces of text so far with their weights, where among them sections end, and where brackets opened."""

    def __init__(self) -> None:
        self.items: list[tuple[str, range]] = []
        self.weights: list[float] = []
        self.breaks: list[int] = []
        self.open: dict[str, list[int]] = {opening: [] for opening in OPENING}

    def add(self, text: str, position: int) -> None:
        self.items.append((text, range(position, position + len(text))))
        self.weights.append(1.0)

    def push(self, opening: str) -> None:
        if sum(map(len, self.open.values())) == MAX_NESTING:
            raise InvalidRequest(f"the prompt opens more than {MAX_NESTING} brackets at once: write \\( for plain ones")
        self.open[opening].append(len(self.items))

    def close(self, opening: str, multiplier: float) -> None:
        self.multiply(self.open[opening].pop(), multiplier)

    def multiply(self, first: int, multiplier: float) -> None:
        for index in range(first, len(self.weights)):
            self.weights[index] *= multiplier

    def sections(self) -> list[list[tuple[str, range, float]]]:
        pieces = [(text, origin, weight) for (text, origin), weight in zip(self.items, self.weights, strict=True)]
        return [pieces[i:j] for i, j in zip([0, *self.breaks], [*self.breaks, len(pieces)], strict=True)]


def _add_text(runs: _Runs, text: str, position: int) -> None:
    """Add literal text, ending a section at each BREAK; the whitespace around a BREAK belongs to it."""
    words = list(BREAK.finditer(text))
    starts, ends = [0, *(word.end() for word in words)], [*(word.start() for word in words), len(text)]
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        part = text[start:end]
        if index > 0:
            runs.breaks.append(len(runs.items))
            part = part.lstrip()
        left = end - len(part)
        if index < len(words):
            part = part.rstrip()
        if part:
            runs.add(part, position + left)


def _merged(pieces: list[tuple[str, range, float]]) -> Section:
    merged: list[tuple[list[str], list[int], float]] = []
    for text, origin, weight in pieces:
        if not merged or merged[-1][2] != weight:
            merged.append(([], [], weight))
        merged[-1][0].append(text)
        merged[-1][1].extend(origin)
    return tuple(Fragment(text="".join(text), weight=_bounded(weight), origin=tuple(o)) for text, o, weight in merged)


def _number(written: str) -> float:
    try:
        return float(written)
    except ValueError as error:
        raise InvalidRequest(f"the prompt's weight {written[:20]!r} is not a number: write it as 1.2") from error


def _bounded(weight: float) -> float:
    if not abs(weight) <= MAX_WEIGHT:
        raise InvalidRequest(f"the prompt's weight {weight:g} is beyond ±{MAX_WEIGHT:g}: weights are around 1")
    return weight
