"""Pictures drawn beforehand are those of the data set, however many processes drew them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sfumato.data.rendered import Rendered, render
from sfumato.data.samples import Sample
from sfumato.errors import Cancelled, DataError, PeerGone
from sfumato.progress import Cancellation, Progress
from support.train_pictures import Shapes


class Growing(Shapes):
    """Shapes of which no two are of one size."""

    def sample(self, index: int) -> Sample:
        self.side = 16 + index
        return super().sample(index)


class Ending(Shapes):
    """Shapes of which one ends its process, as a system does that is short of memory."""

    def sample(self, index: int) -> Sample:
        if index == 280:
            os._exit(9)
        return super().sample(index)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_sample_is_the_data_sets(tmp_path: Path, processes: int) -> None:
    shapes = Shapes(300, 16)
    rendered = render(shapes, tmp_path / "rendered", processes=processes)
    assert len(rendered) == 300
    for i in (0, 1, 255, 256, 299):
        assert rendered.sample(i).picture.tobytes() == shapes.sample(i).picture.tobytes()
        assert rendered.record(i).captions == shapes.record(i).captions
        assert rendered.sample(i).key == str(i)


def test_what_is_there_is_not_drawn_again(tmp_path: Path) -> None:
    render(Shapes(3, 16), tmp_path / "rendered", processes=1)
    assert len(render(Shapes(5, 16), tmp_path / "rendered", processes=1)) == 3


def test_drawing_tells_how_far_it_is_and_stops_without_a_trace(tmp_path: Path) -> None:
    seen, stop = [], Cancellation()

    def told(event: Progress) -> None:
        seen.append((event.stage, event.step, event.steps))

    render(Shapes(300, 16), tmp_path / "whole", processes=1, on_progress=told)
    assert seen == [("draw", 0, 300), ("draw", 256, 300), ("draw", 300, 300)]
    stop.cancel()
    with pytest.raises(Cancelled):
        render(Shapes(300, 16), tmp_path / "stopped", processes=2, cancellation=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_sizes_that_differ_are_refused_and_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of one"):
        render(Growing(3, 16), tmp_path / "rendered", processes=1)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_is_told_in_one_line_and_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(PeerGone, match="one of 2 processes ended"):
        render(Ending(300, 16), tmp_path / "rendered", processes=2)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "rendered"
    render(Shapes(3, 16), folder, processes=1)
    (folder / "records.jsonl").write_text('["0", []]\n', encoding="utf-8")
    with pytest.raises(DataError, match="don't fit"):
        Rendered(folder)
    (folder / "records.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="render them again"):
        Rendered(folder)
    np.save(folder / "pixels.npy", np.array([Path], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="render them again"):
        Rendered(folder)
