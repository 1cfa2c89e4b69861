"""`Finding`: one line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "advice", "broken"]
"""As it should be; works, and could be better; doesn't work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, what was seen, and what to do about it where that isn't "nothing"."""

    about: str
    state: State
    seen: str
    advice: str = ""


def ok(about: str, seen: str) -> Finding:
    """A finding of what is as it should be."""
    return Finding(about=about, state="ok", seen=seen)


def advice(about: str, seen: str, what_to_do: str) -> Finding:
    """A finding of what works, and could be better."""
    return Finding(about=about, state="advice", seen=seen, advice=what_to_do)


def broken(about: str, seen: str, what_to_do: str) -> Finding:
    """A finding of what doesn't work."""
    return Finding(about=about, state="broken", seen=seen, advice=what_to_do)
