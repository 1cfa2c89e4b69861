"""Several pictures on one: a grid with labelled axes, or a plain montage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from PIL import Image, ImageDraw

from sfumato.errors import InvalidRequest
from sfumato.pictures.lettering import Font, drawable, font_for
from sfumato.pictures.pixels import Pixels

_PAPER = (255, 255, 255)
_INK = (32, 33, 36)
_SPACING = 1.25  # baseline to baseline, in font sizes
_MAX_PIXELS = 2**28
_LABELLED_WIDTH = 192  # pixels; below it labels don't fit their pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """Sizes in pixels, all in proportion to the pictures."""

    font: Font
    line: int
    gap: int
    margin: int


def contact_sheet(
    rows: Sequence[Sequence[Pixels]], *, x_labels: Sequence[str] = (), y_labels: Sequence[str] = (), title: str = ""
) -> Pixels:
    """Pictures (each (H, W, 3), sizes may differ) in rows, with a label above each column and left of each row.

    Long labels are wrapped. `InvalidRequest` where labels and pictures don't pair up or the sheet would be too large.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise InvalidRequest("a sheet needs at least one picture")
    if (x_labels and len(x_labels) != columns) or (y_labels and len(y_labels) != len(rows)):
        raise InvalidRequest(
            f"{len(x_labels)} column and {len(y_labels)} row labels don't fit {len(rows)} rows of {columns} pictures"
        )
    if x_labels or y_labels:
        rows = _enlarged(rows)
    widths = [max(row[i].shape[1] for row in rows if i < len(row)) for i in range(columns)]
    style = _style(max(widths), "\n".join((title, *x_labels, *y_labels)))

    above = [_wrapped(label, width, style) for label, width in zip(x_labels, widths, strict=False)]
    beside = [_wrapped(label, max(widths) * 3 // 4, style) for label in y_labels]
    heights = [
        max([len(lines) * style.line] + [picture.shape[0] for picture in row])
        for row, lines in zip_longest(rows, beside, fillvalue=())
    ]
    left = style.margin + _text_width(beside, style)
    body = sum(widths) + style.gap * (columns - 1)
    heading = _wrapped(title, body, style) if title else []
    heading_height = _text_height(heading, style)
    top = style.margin + heading_height + max((_text_height(lines, style) for lines in above), default=0)
    size = left + body + style.margin, top + sum(heights) + style.gap * (len(rows) - 1) + style.margin
    if size[0] * size[1] > _MAX_PIXELS:
        raise InvalidRequest(f"a sheet of {size[0]}×{size[1]} pixels is too large: take fewer or smaller pictures")

    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, heading, left + body / 2, style.margin, "m", style)
    lefts = _offsets(left, widths, style.gap)
    tops = _offsets(top, heights, style.gap)
    for lines, x, width in zip(above, lefts, widths, strict=False):
        _write(draw, lines, x + width / 2, top - _text_height(lines, style), "m", style)
    for lines, y, height in zip(beside, tops, heights, strict=False):
        _write(draw, lines, left - style.gap, y + (height - len(lines) * style.line) / 2, "r", style)
    for row, y, height in zip(rows, tops, heights, strict=True):
        for picture, x, width in zip(row, lefts, widths, strict=False):
            corner = x + (width - picture.shape[1]) // 2, y + (height - picture.shape[0]) // 2
            sheet.paste(Image.fromarray(picture), corner)
    return np.array(sheet)


def montage(pictures: Sequence[Pixels], columns: int | None = None) -> Pixels:
    """Pictures side by side in a nearly square grid, without labels."""
    across = columns or math.ceil(math.sqrt(len(pictures)))
    return contact_sheet([pictures[i : i + across] for i in range(0, len(pictures), max(across, 1))])


def _enlarged(rows: Sequence[Sequence[Pixels]]) -> list[list[Pixels]]:
    """Small pictures by the whole factor that gives the labels room, each pixel a square."""
    narrowest = min(picture.shape[1] for row in rows for picture in row)
    factor = max(1, math.ceil(_LABELLED_WIDTH / narrowest))
    return [[picture.repeat(factor, axis=0).repeat(factor, axis=1) for picture in row] for row in rows]


def _style(picture_width: int, text: str) -> _Style:
    font_size = min(max(picture_width // 20, 12), 40)
    return _Style(
        font=font_for(text, font_size),
        line=round(font_size * _SPACING),
        gap=max(picture_width // 32, 4),
        margin=max(picture_width // 16, 8),
    )


def _offsets(start: int, sizes: Sequence[int], gap: int) -> list[int]:
    """Where each of several neighbours begins."""
    return [start + sum(sizes[:i]) + gap * i for i in range(len(sizes))]


def _wrapped(text: str, width: int, style: _Style) -> list[str]:
    """The text in lines no wider than `width`: broken between words, within a word only where it alone is too long."""
    lines: list[str] = []
    for paragraph in drawable(text, style.font).split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if style.font.getlength(longer) <= width:
                line = longer
                continue
            pieces = _broken(word, width, style)
            lines += [line] * bool(line) + pieces[:-1]
            line = pieces[-1]
        lines.append(line)
    return lines


def _broken(word: str, width: int, style: _Style) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and style.font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _text_width(labels: Sequence[Sequence[str]], style: _Style) -> int:
    """Width of a column of labels, the gap to the pictures included; 0 where there are none."""
    widest = max((style.font.getlength(line) for lines in labels for line in lines), default=0)
    return math.ceil(widest) + style.gap if widest else 0


def _text_height(lines: Sequence[str], style: _Style) -> int:
    """Height of some lines, the gap below them included; 0 where there are none."""
    return len(lines) * style.line + style.gap if lines else 0


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], x: float, y: float, align: str, style: _Style) -> None:
    """Lines downwards from `y`, centred on `x` ("m") or ending there ("r")."""
    for i, line in enumerate(lines):
        draw.text((x, y + (i + 0.5) * style.line), line, fill=_INK, font=style.font, anchor=f"{align}m")
