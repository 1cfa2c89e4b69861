"""An empty folder to work in, none of the user's own settings, and the command line inside this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sfumato.cli.main import run
from support.command_line import Cli, Outcome


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with nothing in it."""
    work = tmp_path / "work"
    work.mkdir()
    for name in [name for name in os.environ if name.startswith("SFUMATO_")]:
        monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def cli(folder: Path, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line. What it writes is caught below Python, so nothing escapes."""

    def call(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = run(arguments)
        out, err = capfd.readouterr()
        return Outcome(code=code, out=out, err=err)

    return call
