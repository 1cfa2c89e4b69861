"""One prompt under changing settings, side by side: the requests of a grid, and its labelled sheet."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sfumato.errors import InvalidRequest
from sfumato.pictures.contact_sheet import contact_sheet
from sfumato.pictures.pixels import Pixels, pixels_sha256
from sfumato.pipeline.field_text import field_text, field_value
from sfumato.pipeline.presets import PRESET, preset_named, with_preset
from sfumato.pipeline.provenance import Provenance
from sfumato.pipeline.request import Request, check_effect

MAX_CELLS = 1000
MAX_PIXELS = 2**27  # half of what a sheet may have: labels and margins need room too

_LIKELY_SIDE = 512  # pixels of Stable Diffusion v1, where neither the request nor yet a model says
_LONG_ROW = 5  # pictures; more are put into a nearly square block


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A field of `Request`, or the preset, and the values it takes along an axis."""

    field: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The field and the value, for each value."""
        name = self.field.replace("_", " ")
        return tuple(f"{name} {field_text(value)}" for value in self.values)


def parse_axis(text: str) -> Axis:
    """Read `field=a,b,c` as an axis; `\\,` is a comma within a value. Raises `InvalidRequest` naming what is wrong."""
    name, equals, values = text.partition("=")
    if not equals:
        raise InvalidRequest(f"the axis {text!r} has no values: write it as field=a,b,c")
    field = name.strip().replace("-", "_")
    parts = [part.replace("\\,", ",").strip() for part in re.split(r"(?<!\\),", values)]
    if "" in parts and field not in ("prompt", "negative_prompt"):
        raise InvalidRequest(f"the axis {text!r} has an empty value: write it as field=a,b,c")
    read = (lambda part: preset_named(part).name) if field == PRESET else partial(field_value, field)
    return Axis(field=field, values=tuple(map(read, parts)))


def grid_requests(request: Request, x: Axis, y: Axis | None = None) -> list[list[Request]]:
    """Rows of requests: `x` changes along a row, `y` from row to row. All are valid, or `InvalidRequest` is raised."""
    if y is not None and y.field == x.field:
        raise InvalidRequest(f"both axes change {x.field}: choose another field for one of them")
    rows: list[dict[str, Any]] = [{y.field: value} for value in y.values] if y is not None else [{}]
    if len(rows) * len(x.values) > MAX_CELLS:
        raise InvalidRequest(f"a grid of {len(rows)} × {len(x.values)} pictures: at most {MAX_CELLS} fit a sheet")
    # Both at once: a spacing may only be possible with the sampler of its own row.
    requests = [[request.replace(**with_preset({**row, x.field: value})) for value in x.values] for row in rows]
    for cell in (cell for row in requests for cell in row):
        check_effect(cell, {x.field, y.field} if y is not None else {x.field})
    pixels = sum(_pixels(cell) for cells in requests for cell in cells)
    if pixels > MAX_PIXELS:
        raise InvalidRequest(f"a grid of {pixels:,.0f} pixels is too large for a sheet: take fewer or smaller pictures")
    return requests


def _pixels(request: Request) -> float:
    return (request.width or _LIKELY_SIDE) * (request.height or _LIKELY_SIDE) * request.upscale**2


def grid_sheet(rows: Sequence[Sequence[Pixels]], x: Axis, y: Axis | None, title: str) -> Pixels:
    """Rows of pictures on one sheet, the axes' values beside them."""
    return contact_sheet(rows, x_labels=x.labels, y_labels=y.labels if y is not None else (), title=title)


def captioned(pictures: Sequence[Pixels], captions: Sequence[str]) -> Pixels:
    """Pictures on one sheet, each with its caption above, in a row or, where there are many, in a block."""
    across = _columns(len(pictures))
    if across == len(pictures):
        return contact_sheet([pictures], x_labels=captions)
    blank = np.full_like(pictures[0], 255)
    cells = list(zip(pictures, captions, strict=True))
    # A last row that is short keeps its pictures under the others.
    cells += [(blank, "")] * (-len(cells) % across)
    bands = []
    for start in range(0, len(cells), across):
        row, labels = zip(*cells[start : start + across], strict=True)
        bands.append(contact_sheet([row], x_labels=labels))
    width = max(band.shape[1] for band in bands)
    return np.concatenate(
        [np.pad(band, ((0, 0), (0, width - band.shape[1]), (0, 0)), constant_values=255) for band in bands]
    )


def _columns(pictures: int) -> int:
    """How many side by side: a block without holes where its shape isn't too long, else the nearest to a square."""
    if pictures <= _LONG_ROW:
        return pictures
    square = math.ceil(math.sqrt(pictures))
    return next((across for across in range(square, 2 * square + 1) if pictures % across == 0), square)


def sheet_provenance(first: Provenance, sheet: Pixels) -> Provenance:
    """The record a sheet carries, as other programs have it: the settings of its first picture, but its own pixels."""
    return dataclasses.replace(first, width=sheet.shape[1], height=sheet.shape[0], pixels_sha256=pixels_sha256(sheet))
