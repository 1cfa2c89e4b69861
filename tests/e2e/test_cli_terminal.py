"""What a terminal gets to see of strangers' texts, and streams and folders that aren't there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from support.command_line import Cli

HOSTILE = "a \x1b[2J\x1b]0;title\x07cat\u202egnp.\nforged: line"
ENTRY = "from sfumato.cli.entry import main; main()"
# A signal in the middle of the first import that takes time; ignored signals are inherited, so ours isn't.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""


def shell(line: str, *arguments: str, code: str = ENTRY, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a shell, where `line` says what becomes of its streams ("$@" is the command)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment | variables,
        timeout=120,
    )


def acting(text: str) -> set[str]:
    return {letter for letter in text if unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}


@pytest.fixture
def picture(folder: Path) -> Path:
    """A picture whose maker wants more than to be read."""
    info = PngInfo()
    info.add_itxt(
        "parameters", f"{HOSTILE}\nNegative prompt: dog\x9b31m\nSteps: 20, Sampler: Eu\x1b[8mler, Seed: 1, Size: 8x8"
    )
    path = folder / "theirs.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_metadata_is_shown_and_does_nothing(cli: Cli, picture: Path) -> None:
    shown = cli("inspect", "theirs.png")
    assert shown.code == 0 and acting(shown.out) == {"\n"}
    assert "\\u001b[2J" in shown.out and "\\u202egnp" in shown.out
    assert not any(line.startswith("forged") for line in shown.lines)
    document = cli("inspect", "theirs.png", "--json")
    assert acting(document.out) == {"\n"} and HOSTILE in json.loads(document.out)["settings"]["prompt"]


def test_errors_show_values_and_do_what_they_say(cli: Cli) -> None:
    for arguments in (["generate", "cat", "--sampler", HOSTILE], ["inspect", HOSTILE], ["replay", HOSTILE], [HOSTILE]):
        refused = cli(*arguments)
        assert refused.code in (1, 2) and acting(refused.err) == {"\n"} and len(refused.err.splitlines()) == 1
    debugged = cli("inspect", HOSTILE, "--debug")
    assert "Traceback" in debugged.err and acting(debugged.err) == {"\n"}


def test_ctrl_c_while_importing_is_one_line() -> None:
    finished = shell('exec "$@"', "samplers", code=INTERRUPTED + ENTRY)
    assert (finished.returncode, finished.stdout, finished.stderr) == (130, "", "sfumato: stopped\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["samplers"], ["models", "list", "--json"], ["generate", "--help"]])
def test_a_full_device_for_results(folder: Path, arguments: list[str], unbuffered: str) -> None:
    finished = shell('exec "$@" >/dev/full', *arguments, PYTHONUNBUFFERED=unbuffered)
    assert finished.returncode == 1
    assert finished.stderr == (
        "sfumato: the results can't be written to stdout (No space left on device): send them elsewhere\n"
    )


def test_closed_streams(folder: Path) -> None:
    no_results = shell('exec "$@" >&-', "samplers")
    assert no_results.returncode == 1 and no_results.stderr.startswith("sfumato: stdout is closed: ")
    assert len(no_results.stderr.splitlines()) == 1
    for ending in ("2>&-", "2>/dev/full", "<&- 2>&-"):
        untold = shell(f'exec "$@" {ending}', "generate", "cat", "--steps", "0")
        assert (untold.returncode, untold.stdout, untold.stderr) == (2, "", "")
    assert shell('exec "$@" 2>&-', "--version").stdout.startswith("sfumato ")


def test_a_folder_that_was_deleted(folder: Path) -> None:
    (folder / "gone").mkdir()
    finished = shell('cd gone && rmdir ../gone && exec "$@"', "explain")
    assert finished.returncode == 2
    assert finished.stderr == "sfumato: the current folder was deleted: go to one that is there, with cd\n"


def test_only_models_are_added(cli: Cli, picture: Path, folder: Path) -> None:
    refused = cli("models", "add", "theirs.png")
    assert refused.code == 1 and len(refused.errors) == 1 and "theirs.png" in refused.err
    (folder / "other").mkdir()
    (folder / "other" / "model_index.json").write_text("{}")
    (folder / "other" / "vae.safetensors").write_bytes(b"")
    assert "it has no folder unet" in cli("models", "add", "other").err
    listed = json.loads(cli("models", "list", "--json").out)["models"]
    assert [model["name"] for model in listed] == ["pocket"]


def test_markup_in_a_models_name_is_only_a_name(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("convert", "pocket", "[bold]x.safetensors").code == 0
    monkeypatch.setenv("SFUMATO_MODEL_PATH", str(folder))
    assert "[bold]x" in cli("models", "list").out
    assert cli("inspect", "[bold]x.safetensors").code == 0


def test_a_home_that_nobody_has_is_said(cli: Cli) -> None:
    for arguments in (("generate", "x", "--out", "~nosuchuser/x"), ("inspect", "~nosuchuser/x.safetensors")):
        outcome = cli(*arguments)
        assert outcome.code == 2 and len(outcome.errors) == 1
