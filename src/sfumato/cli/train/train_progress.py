"""How far training is: on a terminal a bar, in a log lines now and then, from one process for all."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sfumato.cli.terminal.output_lines import write_note
from sfumato.cli.terminal.progress_bar import stderr_bar
from sfumato.progress import OnProgress, Progress, Stage, ignore

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID
    from rich.text import Text

_DOING: Mapping[Stage, str] = {"draw": "drawing", "samples": "encoding", "train": "step"}
_STEP_LINE = "step %d of %d"  # the trainer's own
_SECONDS = 30.0  # between lines about drawing and encoding


def is_first_process() -> bool:
    """Whether this is the only process, or the one of torchrun's that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def training_progress() -> Iterator[OnProgress]:
    """Show on a terminal a bar with images/s and the time left; elsewhere a line every so many steps, and every half
    minute while pictures are drawn or encoded."""
    terminal = sys.stderr.isatty()
    with _shown_log(steps=not terminal):
        if not is_first_process():
            yield ignore
        elif not terminal:
            yield ProgressLines()
        else:
            with _bar() as bar:
                yield ProgressRows(bar)


class ProgressLines:
    """A line about drawing or encoding as often as half a minute has passed; the trainer itself tells its steps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: Progress | None = None
        self._first = 0
        self._begun = self._told = 0.0

    def __call__(self, event: Progress) -> None:
        now = self._clock()
        if not _goes_on(self._last, event):
            self._first, self._begun, self._told = event.step, now, now
        self._last = event
        if event.stage == "train" or now - self._told < _SECONDS:
            return
        self._told = now
        rate = (event.step - self._first) / (now - self._begun)
        left = f", {(event.steps - event.step) / rate / 60.0:.0f} minutes left" if rate else ""
        write_note(f"{_DOING[event.stage]} {event.step} of {event.steps}, {rate:.1f} images/s{left}")


class ProgressRows:
    """One row of `bar` for what is done at present: drawing, encoding, or the steps of a stage."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._last: Progress | None = None
        self._row: TaskID | None = None

    def __call__(self, event: Progress) -> None:
        if self._row is not None and not _goes_on(self._last, event):
            self._bar.remove_task(self._row)
            self._row = None
        if self._row is None:  # what was done before this process says nothing about its speed
            doing = _DOING[event.stage]
            self._row = self._bar.add_task(doing, total=event.steps, completed=event.step, images=event.images)
        self._last = event
        self._bar.update(self._row, completed=event.step)


def _goes_on(before: Progress | None, event: Progress) -> bool:
    """Whether the event is about the same work as the one before."""
    return (
        before is not None and (before.stage, before.steps) == (event.stage, event.steps) and event.step >= before.step
    )


def _bar() -> Bar:
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Task as Row
    from rich.text import Text as RichText

    class Rate(ProgressColumn):
        def render(self, task: Row) -> Text:
            return RichText("" if task.speed is None else f"{task.speed * task.fields['images']:.1f} images/s")

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description} {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        Rate(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
    )
    return stderr_bar(*columns, estimated_over=300)


@contextmanager
def _shown_log(*, steps: bool) -> Iterator[None]:
    """Show meanwhile what the trainer logs of its run, its lines about steps only if `steps`."""
    logger = logging.getLogger("sfumato")
    level = logger.level

    def wanted(record: logging.LogRecord) -> bool:
        return steps or not str(record.msg).startswith(_STEP_LINE)

    logger.addFilter(wanted)
    logger.setLevel(min(level, logging.INFO) if is_first_process() else level)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeFilter(wanted)
