"""Pictures in the terminal: each character cell is an upper half block, so two pixels, one above the other."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest

import numpy as np
from PIL import Image
from rich.cells import cell_len, set_cell_size
from rich.color import Color, ColorSystem
from rich.console import Console

from sfumato.pictures.pixels import Pixels

_log = logging.getLogger(__name__)

_WIDEST = 64  # columns a picture; more shows more of it but scrolls the rest away
_NARROWEST = 28  # columns below which a picture moves to the next row
_GAP = 2
_MARGIN_LINES = 4
_HALF_BLOCK = "▀"
_RESET = "\x1b[0m"
_SYSTEMS = {"truecolor": ColorSystem.TRUECOLOR, "256": ColorSystem.EIGHT_BIT, "standard": ColorSystem.STANDARD}


def wanted(choice: bool | None) -> bool:
    """Tell whether to show pictures: as the flag says, else where stdout is a terminal; never without colours."""
    if choice is False or (choice is None and not sys.stdout.isatty()):
        return False
    reason = _hindrance()
    if choice and reason is not None:
        _log.warning("the pictures are not shown: %s", reason)
    return reason is None


def _hindrance() -> str | None:
    """Why pictures, which are nothing but colours, can't be drawn."""
    if os.environ.get("NO_COLOR"):
        return "NO_COLOR is set"
    if os.environ.get("TERM") == "dumb":
        return "this terminal has no colours (TERM is dumb)"
    if not (sys.stdout.isatty() or sys.stderr.isatty()):
        return "this is not a terminal"
    return None


def show(pictures: Sequence[Pixels], captions: Sequence[str]) -> None:
    """Draw pictures (H, W, 3) side by side, a caption below each.

    They go to stdout where that is a terminal, else to stderr, so that a pipe gets nothing but paths.
    """
    stream = sys.stdout if sys.stdout.isatty() else sys.stderr
    size = shutil.get_terminal_size((100, 40))
    text = rendered(
        pictures,
        captions,
        columns=size.columns,
        lines=size.lines,
        system=_SYSTEMS.get(Console(file=stream).color_system or "truecolor", ColorSystem.TRUECOLOR),
    )
    stream.write(text)
    stream.flush()


def rendered(
    pictures: Sequence[Pixels], captions: Sequence[str], *, columns: int, lines: int, system: ColorSystem
) -> str:
    """Give pictures (H, W, 3) as text for a terminal of this size and these colours."""
    across, width = _layout(pictures, columns, lines)
    rows = [""]
    for start in range(0, len(pictures), across):
        blocks = [_blocks(picture, width, system) for picture in pictures[start : start + across]]
        lines_of_cells = zip_longest(*blocks, fillvalue=" " * width)
        labels = (_fitted(caption, width) for caption in captions[start : start + across])
        rows += [*map((" " * _GAP).join, lines_of_cells), (" " * _GAP).join(labels).rstrip(), ""]
    return "\n".join(rows) + "\n"


def _layout(pictures: Sequence[Pixels], columns: int, lines: int) -> tuple[int, int]:
    """Decide how many pictures stand in a row, and how many columns each has."""
    usable = columns - 1  # some terminals wrap when the last column is written
    fitting = max(1, min(len(pictures), (usable + _GAP) // (_NARROWEST + _GAP)))
    rows = -(-len(pictures) // fitting)
    across = -(-len(pictures) // rows)  # as even as they can be
    # A cell holds two pixels, so a picture of w columns has w * ratio / 2 lines.
    ratio = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    low_enough = max(_NARROWEST, int((lines - _MARGIN_LINES) * 2 / ratio))
    widest = max(picture.shape[1] for picture in pictures)
    return across, max(1, min(_WIDEST, widest, low_enough, (usable + _GAP) // across - _GAP))


def _blocks(picture: Pixels, width: int, system: ColorSystem) -> list[str]:
    """Give the picture (H, W, 3) as lines of `width` cells."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1] / 2)) * 2
    small = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    return [_line(top, bottom, system) for top, bottom in zip(small[::2], small[1::2], strict=True)]


def _line(top: Pixels, bottom: Pixels, system: ColorSystem) -> str:
    """One line of cells from two rows of pixels (W, 3); colours are written only where they change."""
    cells, before = [], ""
    for upper, lower in zip(top.tolist(), bottom.tolist(), strict=True):
        colours = f"\x1b[{_codes(*upper, True, system)};{_codes(*lower, False, system)}m"
        cells.append(_HALF_BLOCK if colours == before else colours + _HALF_BLOCK)
        before = colours
    return "".join(cells) + _RESET


@lru_cache(maxsize=65_536)
def _codes(red: int, green: int, blue: int, foreground: bool, system: ColorSystem) -> str:
    return ";".join(Color.from_rgb(red, green, blue).downgrade(system).get_ansi_codes(foreground))


def _fitted(caption: str, width: int) -> str:
    line = " ".join(caption.split())
    line = "".join(letter for letter in line if letter.isprintable())  # a prompt must not move the cursor
    return set_cell_size(line, width - 1) + "…" if cell_len(line) > width else set_cell_size(line, width)
