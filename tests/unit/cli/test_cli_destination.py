"""Where pictures go: files, folders, and numbers that others take at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from sfumato.cli.images.destination import animation_destination, destination
from sfumato.errors import InvalidRequest, OutputError
from sfumato.pictures.pixels import Pixels
from sfumato.pipeline.request import Request
from support.recorded import record

PIXELS = np.full((8, 8, 3), 200, np.uint8)
RECORD = record(Request(prompt="a cat"), width=8, height=8)


def test_sheets_saved_at_once_all_get_a_number(tmp_path: Path) -> None:
    together = Barrier(6)

    def save(_: int) -> Path:
        where = destination(str(tmp_path / "out"), format=None, pictures=1, overwrite=False)
        together.wait()
        return where.save_sheet(PIXELS, RECORD)

    with ThreadPoolExecutor(6) as pool:
        saved = list(pool.map(save, range(6)))
    assert sorted(path.name for path in saved) == [f"{i:05d}-0-sheet.png" for i in range(1, 7)]
    assert all(path.is_file() for path in saved)


def test_a_walk_takes_the_number_that_is_free_when_it_is_finished(tmp_path: Path) -> None:
    def frames() -> Iterator[Pixels]:
        yield PIXELS
        (tmp_path / "00001-0-a-to-b.webp").write_bytes(b"another run's")
        yield PIXELS // 2

    where = animation_destination(str(tmp_path), fps=10.0, overwrite=False)
    path = where.save_animation(frames(), RECORD, "a to b", fps=10.0)
    assert path.name == "00002-0-a-to-b.webp"
    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"00001-0-a-to-b.webp", "00002-0-a-to-b.webp"}
    assert (tmp_path / "00001-0-a-to-b.webp").read_bytes() == b"another run's"


def test_a_walk_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def frames() -> Iterator[Pixels]:
        yield PIXELS
        raise KeyboardInterrupt

    where = animation_destination(str(tmp_path), fps=10.0, overwrite=False)
    with pytest.raises(KeyboardInterrupt):
        where.save_animation(frames(), RECORD, "a to b", fps=10.0)
    assert list(tmp_path.iterdir()) == []


def test_a_slash_makes_a_folder_of_a_name_with_a_dot(tmp_path: Path) -> None:
    where = destination(f"{tmp_path}/run1.5/", format=None, pictures=3, overwrite=False)
    assert (where.folder, where.file) == (tmp_path / "run1.5", None)
    walk = animation_destination(f"{tmp_path}/run.gif/", fps=10.0, overwrite=False)
    assert (walk.folder, walk.file, walk.suffix) == (tmp_path / "run.gif", None, ".webp")
    with pytest.raises(InvalidRequest, match=r"can't be written as '\.5'"):
        destination(f"{tmp_path}/run1.5", format=None, pictures=1, overwrite=False)


def test_nothing_is_no_place() -> None:
    with pytest.raises(InvalidRequest, match="out '' names nothing"):
        destination("", format=None, pictures=1, overwrite=False)
    with pytest.raises(InvalidRequest, match="out '' names nothing"):
        animation_destination("", fps=10.0, overwrite=False)


def test_a_settings_format_yields_to_a_files_name_and_to_the_flag(tmp_path: Path) -> None:
    named = destination(str(tmp_path / "x.png"), format=None, preferred="webp", pictures=1, overwrite=False)
    assert named.suffix == ".png"
    assert destination(str(tmp_path), format=None, preferred="webp", pictures=1, overwrite=False).suffix == ".webp"
    assert destination(str(tmp_path), format="jpg", preferred="webp", pictures=1, overwrite=False).suffix == ".jpg"
    with pytest.raises(InvalidRequest, match="contradict each other"):
        destination(str(tmp_path / "x.png"), format="jpg", preferred="png", pictures=1, overwrite=False)


def test_a_walk_is_checked_before_any_frame_is_made(tmp_path: Path) -> None:
    (tmp_path / "there.gif").write_bytes(b"")
    with pytest.raises(OutputError, match="already exists"):
        animation_destination(str(tmp_path / "there.gif"), fps=10.0, overwrite=False)
    assert animation_destination(str(tmp_path / "there.gif"), fps=10.0, overwrite=True).file is not None
    with pytest.raises(InvalidRequest, match=r"as '\.png'"):
        animation_destination(str(tmp_path / "x.png"), fps=10.0, overwrite=False)
    with pytest.raises(InvalidRequest, match="fps 0 must be"):
        animation_destination(str(tmp_path / "x.gif"), fps=0.0, overwrite=False)
