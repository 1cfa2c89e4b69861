"""How far the work is, on stderr, where a person looks at it; nothing where stderr is a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sfumato.cli.terminal.output_lines import write_line
from sfumato.progress import OnProgress, Progress, Stage, ignore

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn, TaskID

_DOING: Mapping[Stage, str] = {
    "download": "downloading",
    "load": "loading the model",
    "encode": "reading the prompt",
    "denoise": "painting",
    "decode": "decoding",
    "check": "checking",
    "draw": "drawing",
    "samples": "going through the samples",
}

# Stages a batch goes through while it is made: the bar stays where the last step left it.
_ON_THE_WAY: frozenset[Stage] = frozenset({"decode", "check"})


class Tracker:
    """Progress of one command. `on_progress` goes to whatever does the work; `done` counts whole pictures."""

    def __init__(self, bar: Bar | None, task: TaskID | None, pictures: int) -> None:
        self._bar, self._task = bar, task
        self._pictures, self._finished, self._together = pictures, 0, 1

    @property
    def on_progress(self) -> OnProgress:
        return ignore if self._bar is None else self._show

    def write_line(self, text: str) -> None:
        """Write a line of result on stdout, which may be the terminal the bar is on, or a pipe."""
        if self._bar is None:
            write_line(text)
        else:
            self._bar.stop()
            write_line(text)
            self._bar.start()

    def begin(self, pictures: int) -> None:
        """Note that so many pictures now run together: one step is a step of each."""
        self._together = pictures

    def done(self, pictures: int) -> None:
        """Note that so many more pictures are finished."""
        self._finished += pictures
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._finished)

    def _show(self, event: Progress) -> None:
        assert self._bar is not None and self._task is not None
        if event.stage in ("download", "samples"):
            self._bar.update(
                self._task, description=_DOING[event.stage], completed=event.step, total=event.steps or None
            )
        elif event.stage == "denoise":
            before = self._finished + event.image
            done = before + self._together * event.step / max(event.steps, 1)
            last = f"–{before + self._together}" if self._together > 1 else ""
            which = f"picture {before + 1}{last}/{self._pictures}, " if self._pictures > 1 else ""
            step = f"step {event.step}/{event.steps}"
            self._bar.update(self._task, description=f"{which}{step}", completed=done, total=self._pictures)
        elif event.stage in _ON_THE_WAY:
            self._bar.update(self._task, description=_DOING[event.stage], total=self._pictures)
        else:
            self._bar.update(
                self._task, description=_DOING[event.stage], completed=self._finished, total=self._pictures
            )


@contextmanager
def tracking(pictures: int = 1, *, quiet: bool = False) -> Iterator[Tracker]:
    """A bar that vanishes when the work is over, with the time left. Without a terminal on stderr, or `quiet`, none."""
    if quiet or not sys.stderr.isatty():
        yield Tracker(None, None, pictures)
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
    )
    with stderr_bar(*columns, estimated_over=600) as bar:
        yield Tracker(bar, bar.add_task("starting", total=None), pictures)


def stderr_bar(*columns: ProgressColumn, estimated_over: float) -> Bar:
    """A bar that vanishes when it is left; its time left is judged by the speed of so many last seconds."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    return Bar(
        *columns,
        console=Console(stderr=True),
        transient=True,
        speed_estimate_period=estimated_over,
        redirect_stdout=False,  # rich would send the results to stderr
    )
