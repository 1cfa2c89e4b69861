"""Texts of strangers in a terminal, and where pictures are drawn at all."""

from __future__ import annotations

import io
import json
import logging
import sys
import unicodedata

import pytest

from sfumato.cli.terminal import output_lines as terminal
from sfumato.cli.terminal import shown_pictures as show

HOSTILE = "a\x1b[31mb\x07\r\n\x9b2J\x7f\u202egnp\u2066\u2028\ufeff\U000e0041\ud800\x00"
ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def acting(text: str) -> list[str]:
    return [letter for letter in text if unicodedata.category(letter) in ACTING]


def test_nothing_that_acts_is_left_and_nothing_is_lost() -> None:
    shown = terminal.visible(HOSTILE)
    assert acting(shown) == []
    assert json.loads(f'"{shown}"') == HOSTILE


@pytest.mark.parametrize(
    "text", ["a red heart", "猫 и кошка", "می\u200cخواهم", "👩\u200d🚀", "\u3000wide", 'C:\\x "y"']
)
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert terminal.visible(text) == text


def test_every_way_out_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write_line(HOSTILE)
    out, _ = capsys.readouterr()
    assert acting(out) == ["\n"] and out.endswith("\n")
    terminal.write_error(HOSTILE)
    terminal.write_note(HOSTILE)
    terminal.log_to_stderr(debug=False)
    logging.getLogger("sfumato.test").warning(
        "it says %s", HOSTILE.replace("\ud800", "")
    )  # xdist can't carry half a character
    _, err = capsys.readouterr()
    assert acting(err) == ["\n"] * 3 and len(err.splitlines()) == 3
    terminal.stdout_console().print(terminal.facts({"[bold]na\x1bme": HOSTILE}))
    out, _ = capsys.readouterr()
    assert set(acting(out)) == {"\n"} and "[bold]na\\u001bme" in out


def test_json_is_the_same_document_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    document = {HOSTILE: [HOSTILE, "猫\u2003"], "n": 1}
    terminal.write_json(document)
    out, _ = capsys.readouterr()
    assert json.loads(out) == document and "猫" in out
    assert set(acting(out)) == {"\n"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.usefixtures("in_colour")
@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_pictures_where_colours_are_unwelcome(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert show.wanted(None) and show.wanted(True) and not show.wanted(False)
    monkeypatch.setenv(name, value)
    assert not show.wanted(None) and not show.wanted(True)


@pytest.mark.usefixtures("in_colour")
def test_no_pictures_in_files_and_the_flag_is_told_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.log_to_stderr(debug=False)
    assert not show.wanted(None) and capsys.readouterr().err == ""
    assert not show.wanted(True)
    assert capsys.readouterr().err == "warning: the pictures are not shown: this is not a terminal\n"
    monkeypatch.setattr(sys, "stderr", Terminal())  # paths to a pipe, pictures beside them
    assert show.wanted(True) and not show.wanted(None)
