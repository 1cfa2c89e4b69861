"""Contact sheets: every picture is whole where it should be, and labels are drawn beside, never over, pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from sfumato.errors import InvalidRequest
from sfumato.pictures import lettering
from sfumato.pictures.contact_sheet import contact_sheet, montage
from sfumato.pictures.pixels import Pixels

LONG = "prompt=a photograph of an astronaut riding a horse on the moon, by an unknown_photographer_with_a_long_name"


def plain(colour: tuple[int, int, int], height: int = 200, width: int = 200) -> Pixels:
    return np.full((height, width, 3), colour, np.uint8)


def place(sheet: Pixels, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, left, height, width of the one rectangle of this colour; fails where it has a hole."""
    rows, columns = np.nonzero((sheet == colour).all(axis=-1))
    top, left = rows.min(), columns.min()
    height, width = rows.max() + 1 - top, columns.max() + 1 - left
    assert len(rows) == height * width
    return int(top), int(left), int(height), int(width)


COLOURS = [[(200, 0, 0), (0, 200, 0), (0, 0, 200)], [(200, 200, 0), (0, 200, 200), (200, 0, 200)]]


def test_pictures_stand_whole_in_rows_and_columns() -> None:
    sheet = contact_sheet(
        [[plain(colour) for colour in row] for row in COLOURS],
        x_labels=["sampler=plms", LONG, "sampler=euler"],
        y_labels=["guidance_scale=4", LONG],
        title=LONG,
    )
    places = [[place(sheet, colour) for colour in row] for row in COLOURS]
    assert all(spot[2:] == (200, 200) for row in places for spot in row)
    for row in places:
        assert len({spot[0] for spot in row}) == 1
    for column in zip(*places, strict=True):
        assert len({spot[1] for spot in column}) == 1


def ink(sheet: Pixels) -> int:
    """Dark pixels."""
    return int((sheet.max(axis=-1) < 100).sum())


def test_labels_are_drawn() -> None:
    rows = [[plain((255, 255, 255)) for _ in range(2)] for _ in range(2)]
    bare = contact_sheet(rows)
    assert ink(bare) == 0
    above = contact_sheet(rows, x_labels=["one", "two"])
    beside = contact_sheet(rows, y_labels=["one", "two"])
    assert ink(above) > 50
    assert ink(beside) == ink(above)
    assert above.shape[0] > bare.shape[0] and above.shape[1] == bare.shape[1]
    assert beside.shape[1] > bare.shape[1] and beside.shape[0] == bare.shape[0]


def test_long_labels_wrap_within_their_column() -> None:
    narrow = contact_sheet([[plain((255, 0, 0))] * 2], x_labels=["short", "short"])
    wide = contact_sheet([[plain((255, 0, 0))] * 2], x_labels=["short", LONG])
    assert wide.shape[1] == narrow.shape[1]
    assert wide.shape[0] > narrow.shape[0] + 30


def test_a_row_is_as_tall_as_its_label() -> None:
    strips = [[plain((200, 0, 0), height=16)], [plain((0, 200, 0), height=16)]]
    sheet = contact_sheet(strips, y_labels=[LONG, LONG])
    first, second = place(sheet, (200, 0, 0)), place(sheet, (0, 200, 0))
    assert second[0] - first[0] > 60  # five lines of text, not sixteen pixels
    assert first[2] == second[2] == 16


def test_small_pictures_are_enlarged_by_whole_pixels_where_labels_need_room() -> None:
    sheet = contact_sheet([[plain((200, 0, 0), 64, 64)]], x_labels=["sampler=plms"])
    assert place(sheet, (200, 0, 0))[2:] == (192, 192)
    assert place(montage([plain((200, 0, 0), 64, 64)]), (200, 0, 0))[2:] == (64, 64)


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "INSTALLED", ())


@pytest.mark.usefixtures("no_fonts")
def test_letters_nobody_can_draw_are_spelled() -> None:
    """Without a font of the system's: Pillow's has ASCII and little more, and draws all others as one box."""
    font = lettering.font_for("crème", 20)
    assert lettering.drawable("crème brûlée, cat", font) == "creme brulee, cat"
    assert lettering.drawable("cre\u0300me", font) == "creme"  # typed with a combining accent
    assert lettering.drawable("猫 ж", font) == r"\u732b \u0436"
    rows = [[plain((255, 255, 255))]]
    assert np.array_equal(contact_sheet(rows, title="crème"), contact_sheet(rows, title="creme"))
    assert not np.array_equal(contact_sheet(rows, title="猫"), contact_sheet(rows, title="犬"))


class Alphabet:
    """A font that draws these letters, each its own way, and all others the same."""

    def __init__(self, letters: str) -> None:
        self.letters = letters

    def getmask(self, letter: str) -> bytes:
        return (letter if letter in self.letters else "?").encode()


def test_the_systems_font_with_the_most_letters_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = {"latin.ttf": Alphabet("éè"), "more.ttf": Alphabet("éжш"), "missing.ttf": None}
    monkeypatch.setattr(lettering, "INSTALLED", tuple(fonts))
    monkeypatch.setattr(lettering, "_installed", lambda name, size: fonts[name])
    assert isinstance(lettering.font_for("plain", 20), ImageFont.FreeTypeFont)  # Pillow's own
    assert lettering.font_for("é", 20) is fonts["latin.ttf"]
    assert lettering.font_for("éж猫", 20) is fonts["more.ttf"]
    assert lettering.drawable("éж猫", fonts["more.ttf"]) == r"éж\u732b"
    assert isinstance(lettering.font_for("猫", 20), ImageFont.FreeTypeFont)  # nobody has it


@pytest.mark.parametrize(("count", "columns", "shape"), [(1, None, (1, 1)), (5, None, (2, 3)), (5, 5, (1, 5))])
def test_montage_is_nearly_square(count: int, columns: int | None, shape: tuple[int, int]) -> None:
    pictures = [plain((10 * i, 200, 0), 40, 50) for i in range(count)]
    sheet = montage(pictures, columns)
    places = [place(sheet, (10 * i, 200, 0)) for i in range(count)]
    assert len({spot[0] for spot in places}) == shape[0]
    assert len({spot[1] for spot in places}) == shape[1]


def test_mixed_sizes_are_centred() -> None:
    sheet = contact_sheet([[plain((200, 0, 0), 200, 400)], [plain((0, 200, 0), 300, 200)]])
    wide, tall = place(sheet, (200, 0, 0)), place(sheet, (0, 200, 0))
    assert wide[1] + wide[3] // 2 == tall[1] + tall[3] // 2


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ([], {}),
        ([[]], {}),
        ([[plain((0, 0, 0))]], {"x_labels": ["a", "b"]}),
        ([[plain((0, 0, 0))]], {"y_labels": ["a", "b"]}),
    ],
)
def test_refuses_what_does_not_fit(rows: list[list[Pixels]], labels: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidRequest):
        contact_sheet(rows, **labels)


def test_refuses_a_sheet_too_large_to_hold() -> None:
    row = [np.broadcast_to(np.zeros(3, np.uint8), (8192, 8192, 3))] * 5
    with pytest.raises(InvalidRequest, match="too large"):
        contact_sheet([row])
