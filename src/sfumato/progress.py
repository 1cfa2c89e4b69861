"""The one event type through which anything long tells how far it is, and the one way to stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sfumato.errors import Cancelled

Stage = Literal["download", "load", "encode", "denoise", "decode", "check", "draw", "samples", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One thing that happened.

    `step` of `steps` are done within `stage` of picture `image` of `images` (all counted from 0; `step` counts what is
    finished). An upscaled picture's steps are those of both passes; the stage "decode" comes after each, with pictures
    decoded as steps. In the stages "draw" and "samples", steps are a data set's samples, which are composed or gone
    through; in "train" they are the optimiser's, of `images` samples each. In the stage "denoise", `sigma` is the noise
    level reached and `preview()` makes a small picture (PIL image) of the state; calling it costs time, ignoring it
    costs nothing.
    """

    stage: Stage
    step: int
    steps: int
    image: int = 0
    images: int = 1
    sigma: float | None = None
    preview: Callable[[], Any] | None = field(default=None, repr=False, compare=False)


OnProgress = Callable[[Progress], None]


def ignore(event: Progress) -> None:
    """An `OnProgress` that does nothing."""


class Cancellation:
    """A flag one thread sets and the working thread looks at between steps."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the work to stop. It does so within one step, raising `Cancelled` there."""
        self._event.set()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raise `Cancelled` if `cancel` was called."""
        if self._event.is_set():
            raise Cancelled("stopped before it was finished, as asked")
