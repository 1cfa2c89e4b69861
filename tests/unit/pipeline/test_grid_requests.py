"""A grid's axes and requests, typed and checked before anything is made, and its sheets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import InvalidRequest
from sfumato.pipeline.field_text import FIELDS, field_text, field_value
from sfumato.pipeline.request import Request
from sfumato.pipeline.setting_grid import Axis, captioned, grid_requests, grid_sheet, parse_axis


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=1,20, 300", (1, 20, 300)),
        ("guidance_scale=1,7.5,1e1", (1.0, 7.5, 10.0)),
        ("guidance-scale=2", (2.0,)),
        ("sampler=plms,k_lms", ("plms", "k_lms")),
        ("prompt=a cat,one\\, two", ("a cat", "one, two")),
        ("negative_prompt=,dog", ("", "dog")),
        ("spacing=none,karras", (None, "karras")),
        ("width=none,64", (None, 64)),
        ("guidance_interval=none,0.5:3", (None, (0.5, 3.0))),
        ("variation_seed=4", (4,)),
    ],
)
def test_values_are_typed_as_the_request_declares_them(text: str, expected: tuple[object, ...]) -> None:
    values = parse_axis(text).values
    assert values == expected and [type(value) for value in values] == [type(value) for value in expected]


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("init_image", "mask")])
def test_every_default_is_read_back_from_its_own_text(name: str) -> None:
    value = getattr(Request(prompt="a prompt"), name)
    assert field_value(name, field_text(value)) == value


@given(st.floats(0, 1000), st.integers(0, 2**63 - 1))
def test_numbers_survive_as_text(scale: float, seed: int) -> None:
    assert field_value("guidance_scale", repr(scale)) == scale and field_value("seed", field_text(seed)) == seed


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ("steps", None, "write it as field=a,b,c"),
        ("steps=", None, "empty value"),
        ("steps=1,,2", None, "empty value"),
        ("stepps=1", None, "did you mean 'steps'"),
        ("steps=1,x", None, "steps 'x' must be a whole number"),
        ("steps=1,1001", None, "steps 1001 must be"),
        ("sampler=plms,foo", None, "sampler 'foo' is unknown"),
        ("steps=1", "steps=2", "both axes change steps"),
        ("sampler=euler,plms", "spacing=none,karras", "sampler 'plms' can't use the spacing 'karras'"),
        ("width=8192", "seed=" + ",".join("1" * 40), "too large for a sheet"),
        ("mask=none", "seed=" + ",".join("1" * 1001), "at most 1000"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(x: str, y: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        grid_requests(Request(prompt="a"), parse_axis(x), parse_axis(y) if y is not None else None)


def test_x_changes_along_a_row_and_y_from_row_to_row() -> None:
    base = Request(prompt="a", steps=9)
    rows = grid_requests(base, parse_axis("seed=1,2,3"), parse_axis("sampler=euler,heun"))
    assert [[dataclasses.asdict(r) for r in row] for row in rows] == [
        [dataclasses.asdict(base) | {"seed": seed, "sampler": sampler} for seed in (1, 2, 3)]
        for sampler in ("euler", "heun")
    ]
    # A spacing and a sampler that only fit each other.
    pairs = grid_requests(Request(prompt="a"), parse_axis("spacing=karras"), parse_axis("sampler=euler,heun"))
    assert [row[0].spacing for row in pairs] == ["karras", "karras"]


def picture(value: int) -> np.ndarray:
    return np.full((64, 64, 3), value, np.uint8)


def test_a_sheet_holds_every_picture_in_its_place() -> None:
    x, y = Axis(field="seed", values=(1, 2, 3)), Axis(field="sampler", values=("a", "b"))
    rows = [[picture(10), picture(20), picture(30)], [picture(40), picture(50), picture(60)]]
    sheet = grid_sheet(rows, x, y, "title")
    centres = {value: np.argwhere((sheet == value).all(axis=2)).mean(axis=0) for value in (10, 20, 30, 40, 50, 60)}
    assert centres[10][0] == centres[20][0] == centres[30][0] < centres[40][0] == centres[60][0]
    assert centres[10][1] == centres[40][1] < centres[20][1] == centres[50][1] < centres[30][1]


@pytest.mark.parametrize(
    ("count", "across"), [(1, 1), (4, 4), (5, 5), (6, 3), (7, 3), (8, 4), (9, 3), (10, 5), (11, 4), (12, 4), (14, 7)]
)
def test_captioned_pictures_are_all_there_and_aligned(count: int, across: int) -> None:
    pictures = [picture(10 + i) for i in range(count)]
    sheet = captioned(pictures, [f"caption number {i} " * (1 + i % 3) for i in range(count)])
    areas = [(sheet == 10 + i).all(axis=2) for i in range(count)]
    tops = [int(np.argwhere(area)[0][0]) for area in areas]
    lefts = [int(np.argwhere(area).min(axis=0)[1]) for area in areas]
    assert all(area.sum() >= 64 * 64 for area in areas)
    assert len(set(tops)) == -(-count // across) and len(set(lefts)) == min(count, across)
