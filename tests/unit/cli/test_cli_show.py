"""Pictures drawn in the terminal, read back as a terminal would read them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from rich.cells import cell_len
from rich.color import Color, ColorSystem

from sfumato.cli.terminal.shown_pictures import rendered

ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def lines_of(text: str) -> list[str]:
    return [ESCAPE.sub("", line) for line in text.splitlines()]


def pixels_of(text: str) -> np.ndarray:
    """The picture that half blocks in 24-bit colours show: (2 · lines, columns, 3)."""
    rows = []
    for line in text.splitlines():
        if "▀" not in line:
            continue
        top, bottom, colours = [], [], []
        for codes, cells in re.findall(r"\x1b\[([0-9;]*)m(▀*)", line):
            if cells:
                colours = [int(code) for code in codes.split(";")]
                assert colours[:2] == [38, 2] and colours[5:7] == [48, 2]
            top += [colours[2:5]] * len(cells)
            bottom += [colours[7:10]] * len(cells)
        rows += [top, bottom]
    return np.array(rows, dtype=np.uint8)


def test_a_small_picture_is_shown_pixel_by_pixel() -> None:
    text = rendered([NOISE], ["noise"], columns=100, lines=100, system=ColorSystem.TRUECOLOR)
    np.testing.assert_array_equal(pixels_of(text), NOISE)


@pytest.mark.parametrize("columns", [20, 40, 80, 133, 250])
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_no_line_is_wider_than_the_terminal_and_each_picture_is_there(columns: int, count: int) -> None:
    captions = [f"prompt {i} " + "很长 " * 40 for i in range(count)]
    text = rendered([NOISE] * count, captions, columns=columns, lines=40, system=ColorSystem.TRUECOLOR)
    lines = lines_of(text)
    assert max(map(cell_len, lines)) < columns
    assert sum(line.count("prompt ") for line in lines) == count


def test_the_shape_is_kept() -> None:
    wide = np.zeros((256, 512, 3), np.uint8)
    lines = [
        line
        for line in lines_of(rendered([wide], [""], columns=200, lines=60, system=ColorSystem.TRUECOLOR))
        if "▀" in line
    ]
    # A cell holds two pixels, so twice as many columns as lines would be a square.
    assert len(lines[0]) / (2 * len(lines)) == pytest.approx(2.0, rel=0.05)


def test_fewer_colours_where_the_terminal_has_fewer() -> None:
    red = np.full((4, 4, 3), (250, 10, 10), np.uint8)
    text = rendered([red], [""], columns=50, lines=50, system=ColorSystem.EIGHT_BIT)
    number = Color.from_rgb(250, 10, 10).downgrade(ColorSystem.EIGHT_BIT).number
    assert f"\x1b[38;5;{number};48;5;{number}m▀▀▀▀" in text and "38;2" not in text


def test_a_prompt_cannot_steer_the_terminal() -> None:
    text = rendered([NOISE], ["a\x1b[2Jb\nc\x07\u202ed"], columns=100, lines=100, system=ColorSystem.TRUECOLOR)
    caption = text.splitlines()[-2]
    assert caption == "a[2Jb cd"
