"""How far training is: lines in a log, rows of a bar, and Ctrl-C before the first step."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress as Bar

from sfumato.cli.train.train_progress import ProgressLines, ProgressRows
from sfumato.progress import Progress, Stage


def told(stage: Stage, step: int, steps: int) -> Progress:
    return Progress(stage=stage, step=step, steps=steps)


def test_a_log_has_a_line_each_half_minute_that_pictures_take(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = ProgressLines(clock=lambda: now)
    for stage, step, steps in (
        ("draw", 0, 1000),
        ("samples", 400, 1000),  # resumed: 400 were there
        ("train", 0, 1000),
        ("samples", 0, 60),
    ):
        for i in range(11):
            lines(told(stage, step + i * (steps - step) // 10, steps))
            now += {"draw": 11.0, "samples": 0.5 if steps == 60 else 20.0, "train": 50.0}[stage]
    assert capsys.readouterr().err.splitlines() == [
        "drawing 300 of 1000, 9.1 images/s, 1 minutes left",
        "drawing 600 of 1000, 9.1 images/s, 1 minutes left",
        "drawing 900 of 1000, 9.1 images/s, 0 minutes left",
        "encoding 520 of 1000, 3.0 images/s, 3 minutes left",
        "encoding 640 of 1000, 3.0 images/s, 2 minutes left",
        "encoding 760 of 1000, 3.0 images/s, 1 minutes left",
        "encoding 880 of 1000, 3.0 images/s, 1 minutes left",
        "encoding 1000 of 1000, 3.0 images/s, 0 minutes left",
    ]


def test_the_bar_has_a_row_of_its_own_for_each_thing_that_is_done() -> None:
    bar = Bar(console=Console(file=io.StringIO()))
    rows = ProgressRows(bar)
    seen = []
    for event in (
        told("samples", 0, 12),
        told("samples", 12, 12),
        told("samples", 0, 2),
        Progress(stage="train", step=3, steps=20, images=8),
        Progress(stage="train", step=4, steps=20, images=8),
        Progress(stage="train", step=0, steps=20, images=4),  # another stage of as many steps
    ):
        rows(event)
        (row,) = bar.tasks
        seen.append((row.id, row.description, row.completed, row.total, row.fields["images"]))
    assert seen == [
        (0, "encoding", 0, 12, 1), (0, "encoding", 12, 12, 1), (1, "encoding", 0, 2, 1),
        (2, "step", 3, 20, 8), (2, "step", 4, 20, 8), (3, "step", 0, 20, 4),
    ]  # fmt: skip
