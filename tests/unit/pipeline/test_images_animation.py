"""Moving pictures: every format gives the frames back, at their speed, and says that an algorithm made them."""

from __future__ import annotations

import io
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from sfumato.errors import Cancelled, InvalidRequest, MissingExtra, OutputError
from sfumato.pictures.pixels import Pixels
from sfumato.pipeline.animation import check_size, save_animation
from sfumato.pipeline.request import Request
from support.recorded import record

RECORD = record(Request(prompt="a red heart, süß"), width=33, height=31)
TERM = b"trainedAlgorithmicMedia"


def frames(count: int = 6, height: int = 31, width: int = 33) -> list[Pixels]:
    """Plain grays, dark to light; the sides are odd on purpose."""
    return [np.full((height, width, 3), 20 + 35 * i, np.uint8) for i in range(count)]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_gif_and_webp_give_the_frames_back(tmp_path: Path, suffix: str) -> None:
    path = save_animation(frames(), tmp_path / f"walk{suffix}", fps=10, provenance=RECORD)
    with Image.open(path) as animation:
        assert animation.info["loop"] == 0
        read = [(np.array(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(animation)]
    assert len(read) == 6
    for (pixels, duration), frame in zip(read, frames(), strict=True):
        assert duration == 100
        assert np.abs(pixels.astype(int) - frame).max() <= 3
    assert TERM in path.read_bytes()


def test_mp4_gives_the_frames_back(tmp_path: Path) -> None:
    path = save_animation(frames(), tmp_path / "walk.mp4", fps=12.5, provenance=RECORD)
    with av.open(io.BytesIO(path.read_bytes())) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 12.5
        assert (stream.width, stream.height) == (34, 32)
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert "a red heart, süß" in container.metadata["comment"]
    assert len(read) == 6
    for pixels, frame in zip(read, frames(), strict=True):
        assert np.abs(pixels[:31, :33].astype(int) - frame).max() <= 6
    assert TERM in path.read_bytes()


def test_mp4_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"sfumato\[video\]"):
        save_animation(frames(), tmp_path / "walk.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_one_frame_is_enough(tmp_path: Path, suffix: str) -> None:
    path = save_animation(frames(1), tmp_path / f"walk{suffix}")
    with Image.open(path) as picture:
        assert picture.size == (33, 31)


@pytest.mark.parametrize(
    ("pictures", "name", "fps"),
    [
        ([], "walk.gif", 12),
        (frames(1) + frames(1, height=8), "walk.gif", 12),
        (frames(), "walk.avi", 12),
        (frames(), "walk.gif", 0),
        (frames(), "walk.gif", 1000),
    ],
)
def test_refuses_what_can_not_move(tmp_path: Path, pictures: list[Pixels], name: str, fps: float) -> None:
    with pytest.raises(InvalidRequest):
        save_animation(pictures, tmp_path / name, fps=fps)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = save_animation(frames(), tmp_path / "walk.gif")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        save_animation(frames(2), path)
    assert path.read_bytes() == before
    save_animation(frames(2), path, overwrite=True)
    assert path.read_bytes() != before


def test_frames_too_large_for_the_format_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written") as caught:
        save_animation([np.zeros((1, 17_000, 3), np.uint8)] * 2, tmp_path / "walk.webp")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_frames_are_written_as_they_come(tmp_path: Path, suffix: str) -> None:
    made: list[weakref.ref[Pixels]] = []
    most = 0

    def walk() -> Iterator[Pixels]:
        nonlocal most
        for i in range(12):
            frame = np.full((32, 32, 3), 20 * i, np.uint8)
            made.append(weakref.ref(frame))
            most = max(most, sum(other() is not None for other in made))
            yield frame

    path = save_animation(walk(), tmp_path / f"walk{suffix}")
    assert path.exists() and len(made) == 12 and most <= 4


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
@pytest.mark.parametrize("error", [RuntimeError("the model broke"), Cancelled("stopped"), OSError("no input")])
def test_what_fails_while_frames_are_made_is_raised_as_it_is(tmp_path: Path, suffix: str, error: Exception) -> None:
    def walk() -> Iterator[Pixels]:
        yield from frames(2)
        raise error

    with pytest.raises(type(error)) as caught:
        save_animation(walk(), tmp_path / f"walk{suffix}")
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_more_frames_than_memory_holds_are_refused_before_they_are_made() -> None:
    check_size(".gif", 1024, 512, 512)  # 2**28 pixels
    check_size(".mp4", 10_000, 512, 512)  # written as they come
    with pytest.raises(InvalidRequest, match=r"1025 frames of 512×512 don't fit a \.webp: at most 1024 do"):
        check_size(".webp", 1025, 512, 512)
