"""What the documentation shows works: Python blocks run, and every command line is one the program understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from sfumato.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^ {4}(?:[A-Z_]+=\S+ )*sfumato (?P<arguments>.+)$", re.MULTILINE)


def commands() -> list[str]:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    return [
        re.split(r"\s{2,}#|\s#\s|\s>\s", match["arguments"])[0] for text in texts for match in COMMAND.finditer(text)
    ]


def test_there_is_something_to_check() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize("line", commands())
def test_command_line_is_understood(line: str) -> None:
    """Parsed to the last option, not run: most want a model or a network."""
    words = shlex.split(line.replace("$(cat long.txt)", "long"))
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"sfumato has no command {name}"
        command = command.commands[name]
    command.make_context(command.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
