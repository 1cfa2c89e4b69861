"""The bar on a terminal: it never goes back while a picture is finished."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import Progress as Bar

from sfumato.cli.terminal.progress_bar import Tracker
from sfumato.progress import Progress


def test_the_bar_stays_where_the_last_step_left_it() -> None:
    bar = Bar(console=Console(file=io.StringIO()))
    task = bar.add_task("starting", total=None)
    tracker = Tracker(bar, task, 2)
    seen = []
    for stage, step, steps in (
        ("download", 700, 900),
        ("load", 0, 4),
        ("encode", 0, 1),
        ("denoise", 1, 4),
        ("decode", 0, 1),
        ("denoise", 4, 4),
        ("decode", 1, 1),
        ("check", 0, 1),
    ):
        tracker.on_progress(Progress(stage=stage, step=step, steps=steps))
        seen.append((bar.tasks[0].description, bar.tasks[0].completed, bar.tasks[0].total))
    assert seen == [
        ("downloading", 700, 900),
        ("loading the model", 0, 2),
        ("reading the prompt", 0, 2),
        ("picture 1/2, step 1/4", 0.25, 2),
        ("decoding", 0.25, 2),
        ("picture 1/2, step 4/4", 1.0, 2),
        ("decoding", 1.0, 2),
        ("checking", 1.0, 2),
    ]
