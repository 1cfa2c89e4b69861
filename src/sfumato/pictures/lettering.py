"""The font of labels: Pillow's own, or one of the system's where a label has letters that Pillow's doesn't."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Files that systems have, the ones with the most letters of their kind first. Pillow knows the folders to look in.
INSTALLED = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "WenQuanYiMicroHei.ttf",
    "Arial Unicode.ttf",
    "Hiragino Sans GB.ttc",
    "arial.ttf",
    "msyh.ttc",
    "YuGothR.ttc",
    "malgun.ttf",
    "seguiemj.ttf",
)

_NOBODYS = "\uffff"  # not a character: every font draws what it draws for letters it doesn't have


def font_for(text: str, size: int) -> Font:
    """The font of `size` pixels that lacks the fewest letters of `text`; Pillow's own wherever it has them all."""
    letters = set(_composed(text)) - set(" \n")
    best: tuple[int, Font] | None = None
    for font in _fonts(size):
        missing = sum(not _has(font, letter) for letter in letters)
        if best is None or missing < best[0]:
            best = missing, font
        if best[0] == 0:
            break
    assert best is not None
    return best[1]


def drawable(text: str, font: Font) -> str:
    """The text in letters that `font` has: others lose their accents, or are written as numbers (`\\u4e2d`)."""
    return "".join(letter if letter in " \n" else _spelled(letter, font) for letter in _composed(text))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", "\n".join(text.splitlines()))


def _spelled(letter: str, font: Font) -> str:
    if _has(font, letter):
        return letter
    plain = [part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part)]
    if plain and all(_has(font, part) for part in plain):
        return "".join(plain)
    return f"\\u{ord(letter):04x}"


def _fonts(size: int) -> Iterator[Font]:
    """Pillow's own, then those of the system that are there."""
    yield ImageFont.load_default(size)
    for name in INSTALLED:
        font = _installed(name, size)
        if font is not None:
            yield font


@lru_cache(maxsize=64)
def _installed(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _has(font: Font, letter: str) -> bool:
    """Fonts don't say which letters they have, but they draw all others the same."""
    return letter.isascii() or bytes(font.getmask(letter)) != bytes(font.getmask(_NOBODYS))
