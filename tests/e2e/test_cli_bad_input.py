"""Whatever is wrong: one line that says what and what to do, exit code 2 or 1, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file, save_file

import sfumato
from support.command_line import Cli, files_in

# Each with what the line has to say.
WRONG: dict[str, tuple[int, str, list[str]]] = {
    "unknown sampler": (2, "did you mean 'plms'?", ["generate", "cat", "--sampler", "plsm"]),
    "size": (2, "width 500 is not a multiple of 8: use 496 or 504", ["generate", "c", "-W", "500", "-H", "333"]),
    "height": (2, "height 333 is not a multiple of 8: use 328 or 336", ["generate", "cat", "--height", "333"]),
    "steps": (2, "steps 0 must be a whole number from 1 to 1000", ["generate", "cat", "--steps", "0"]),
    "no number": (2, "steps 'many' must be a whole number", ["generate", "cat", "--steps", "many"]),
    "nan": (2, "guidance_scale nan must be a number", ["generate", "cat", "--guidance-scale", "nan"]),
    "seed": (2, "seed -1 must be", ["generate", "cat", "--seed", "-1"]),
    "no more seeds": (2, "leaves no room", ["generate", "c", "--seed", str(2**63 - 1), "-c", "2"]),
    "count": (2, "count 0 must be", ["generate", "cat", "--count", "0"]),
    "interval": (2, "guidance_interval", ["generate", "cat", "--guidance-interval", "3"]),
    "spacing": (2, "its weights assume timesteps in equal strides", ["generate", "cat", "--spacing", "karras"]),
    "unknown flag": (2, "no such option --stepps: did you mean --steps?", ["generate", "cat", "--stepps", "5"]),
    "unknown command": (2, "did you mean 'generate'?", ["generat", "cat"]),
    "no value": (2, "--steps", ["generate", "cat", "--steps"]),
    "no prompt": (2, "no prompt was given", ["generate"]),
    "missing picture": (2, "nope.png doesn't exist", ["generate", "cat", "--init-image", "nope.png"]),
    "corrupt picture": (2, "corrupt.png is a damaged picture", ["generate", "cat", "--init-image", "corrupt.png"]),
    "no picture": (2, "text.txt is not a picture", ["generate", "cat", "--init-image", "text.txt"]),
    "mask alone": (2, "mask needs an init_image", ["generate", "cat", "--mask", "fine.png"]),
    "strength alone": (2, "strength 0.5 needs a picture", ["generate", "cat", "--strength", "0.5"]),
    "strengths alone": (2, "strength 0.5 needs a picture", ["grid", "cat", "--x", "strength=0.5,1"]),
    "variation alone": (2, "needs the seed to vary towards", ["generate", "cat", "--variation-strength", "0.5"]),
    "variations alone": (2, "needs the seed to vary", ["grid", "cat", "--x", "variation_strength=0,0.5"]),
    "missing prompts": (2, "prompts file nope.txt", ["generate", "--prompts-file", "nope.txt"]),
    "binary prompts": (2, "not UTF-8", ["generate", "--prompts-file", "corrupt.png"]),
    "missing model": (2, "no such file or folder", ["generate", "cat", "--model", "./nowhere"]),
    "unknown model": (2, "no model 'poket'", ["generate", "cat", "--model", "poket"]),
    "corrupt model": (1, "corrupt.safetensors", ["generate", "cat", "--model", "corrupt.safetensors"]),
    "device": (2, "device 'gpu' is unknown", ["generate", "cat", "--device", "gpu"]),
    "dtype": (2, "dtype 'float8' is unknown", ["generate", "cat", "--dtype", "float8"]),
    "safety": (2, "safety 'no' is unknown", ["generate", "cat", "--safety", "no"]),
    "format": (2, "can't be written as '.bmp'", ["generate", "cat", "--format", "bmp"]),
    "out's format": (2, "can't be written as '.bmp'", ["generate", "cat", "--out", "x.bmp"]),
    "two formats": (2, "contradict", ["generate", "cat", "--out", "x.png", "--format", "jpg"]),
    "many to one file": (2, "'x.png' is one file, but 2 pictures", ["generate", "cat", "dog", "--out", "x.png"]),
    "already there": (1, "fine.png: already exists", ["generate", "cat", "--out", "fine.png"]),
    "folder is a file": (1, "text.txt: is a file", ["generate", "cat", "--out", "text.txt/pictures/"]),
    "folder can't be": (1, "the folder could not be made", ["generate", "c", "-o", "/proc/no/pictures", "-S", "1"]),
    "out too long": (1, "the name is too long: choose a shorter one", ["generate", "cat", "--out", f"{'x' * 300}.png"]),
    "folder too long": (1, "the name is too long", ["generate", "cat", "--out", f"{'x' * 300}/"]),
    "model too long": (1, "the name is too long", ["generate", "cat", "--model", "x" * 300]),
    "grid field": (2, "did you mean 'sampler'?", ["grid", "cat", "--x", "samplr=plms"]),
    "grid value": (2, "sampler 'foo' is unknown", ["grid", "cat", "--x", "steps=5", "--y", "sampler=plms,foo"]),
    "grid without values": (2, "write it as field=a,b,c", ["grid", "cat", "--x", "sampler"]),
    "grid twice": (2, "both axes change steps", ["grid", "cat", "--x", "steps=1,2", "--y", "steps=3"]),
    "grid without axis": (2, "--x", ["grid", "cat"]),
    "frames": (2, "frames 1 must be from 2", ["interpolate", "a", "b", "--frames", "1"]),
    "animation": (2, "can't be written as '.avi'", ["interpolate", "a", "b", "--out", "x.avi"]),
    "fps": (2, "fps 0 must be", ["interpolate", "a", "b", "--fps", "0"]),
    "no record": (2, "fine.png has no record of sfumato", ["replay", "fine.png"]),
    "replay nothing": (2, "nope.png doesn't exist", ["replay", "nope.png"]),
    "inspect nothing": (2, "nope.png doesn't exist", ["inspect", "nope.png"]),
    "inspect silence": (2, "says nothing about how it was made", ["inspect", "fine.png"]),
    "explain pair": (2, "can't use the spacing 'karras'", ["explain", "--spacing", "karras"]),
    "layout": (2, "did you mean 'diffusers'?", ["convert", "pocket", "out", "--layout", "difusers"]),
    "convert dtype": (2, "dtype 'int8' is unknown", ["convert", "pocket", "out", "--dtype", "int8"]),
    "convert over": (1, "already exists", ["convert", "pocket", "corrupt.safetensors"]),
    "remove embedded": (2, "can't be removed", ["models", "rm", "pocket"]),
    "hub id": (2, "is not a Hub id", ["models", "pull", "not an id"]),
}  # fmt: skip


@pytest.fixture
def things(folder: Path) -> Path:
    """A picture, a cut-off picture, a text, and a file that only claims to be a model."""
    from PIL import Image

    Image.effect_noise((64, 64), 50).convert("RGB").save("fine.png")
    (folder / "corrupt.png").write_bytes(Path("fine.png").read_bytes()[:300])
    (folder / "text.txt").write_text("a text\n")
    (folder / "corrupt.safetensors").write_bytes(b"\xff" * 100)
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(cli: Cli, things: Path, name: str) -> None:
    code, says, arguments = WRONG[name]
    before = files_in(things)
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (code, "")
    lines = [line for line in outcome.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("sfumato: ") and says in lines[0]
    assert files_in(things) == before


def test_debug_shows_the_traceback_above_the_line(cli: Cli) -> None:
    outcome = cli("generate", "cat", "--steps", "0", "--debug")
    lines = outcome.err.splitlines()
    assert outcome.code == 2 and lines[0].startswith("Traceback") and lines[-1].startswith("sfumato: steps 0")


def test_what_nobody_expected_is_one_line_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError("line one\nline two")

    monkeypatch.setattr("sfumato.pipeline.pipeline.Pipeline.generate", explode)
    outcome = cli("generate", "cat")
    assert outcome.code == 1 and outcome.err.splitlines() == [
        "sfumato: something unexpected went wrong (ZeroDivisionError: line one line two): "
        "run again with --debug, and report what it shows"
    ]


def test_what_the_system_refuses_is_no_surprise(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/locked/model.json")

    monkeypatch.setattr("sfumato.pipeline.pipeline.Pipeline.generate", refuse)
    outcome = cli("generate", "cat")
    assert (outcome.code, outcome.err) == (
        1,
        "sfumato: /locked/model.json: no permission: choose another place, or have it given\n",
    )


def test_a_full_disk_leaves_nothing(cli: Cli, folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        outcome = cli("generate", "cat", "--steps", "1", "--out", "there")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 1 and len(outcome.errors) == 1 and "could not be written" in outcome.errors[0]
    assert outcome.out == "" and files_in(folder) == []


def test_a_read_only_folder_is_found_before_any_work(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")  # root may write anywhere
    monkeypatch.setattr("sfumato.pipeline.load_pipeline.load_with", lambda *_, **__: pytest.fail("loaded a model"))
    outcome = cli("generate", "cat", "--out", "locked/pictures")
    assert outcome.code == 1 and "locked: no permission to write there" in outcome.errors[0]
    assert files_in(folder) == []


def test_weights_that_are_not_numbers_make_no_black_picture(cli: Cli, folder: Path) -> None:
    shutil.copytree(Path(sfumato.__file__).parent / "assets" / "pocket", "broken")
    path = folder / "broken" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["mid_block.resnets.0.conv1.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    before = files_in(folder)
    outcome = cli("generate", "cat", "--model", "./broken", "--steps", "2")
    assert outcome.code == 1 and len(outcome.errors) == 1 and "mid" in outcome.errors[0] and "NaN" in outcome.errors[0]
    assert outcome.out == "" and files_in(folder) == before


def test_without_a_network(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for arguments in (["generate", "cat", "--model", "someone/something"], ["models", "pull", "someone/something"]):
        outcome = cli(*arguments)
        assert outcome.code == 1 and len(outcome.errors) == 1
        assert "someone/something: the Hub can't be reached" in outcome.errors[0]
    offline = cli("generate", "cat", "--model", "someone/something", "--offline")
    assert offline.code == 1 and "not on this machine" in offline.errors[0]


def test_wrong_settings_name_the_file(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = folder / "sfumato.toml"
    settings.write_text("stepps = 4\n")
    unknown = cli("generate", "cat")
    assert unknown.code == 2 and str(settings) in unknown.errors[0] and "did you mean 'steps'?" in unknown.errors[0]
    settings.write_text("steps = 5000\n")
    assert f"steps 5000 must be a whole number from 1 to 1000 (set in {settings})" in cli("generate", "cat").err
    settings.write_text("watermark = 3\n")
    assert f"watermark 3 must be true or false (set in {settings})" in cli("generate", "cat").err
    settings.write_text("steps = \n")
    assert "is not TOML" in cli("generate", "cat").err
    settings.unlink()
    monkeypatch.setenv("SFUMATO_STEPS", "x")
    assert "(set in SFUMATO_STEPS)" in cli("generate", "cat").err


def test_a_wrong_line_of_prompts_stops_before_the_first_picture(cli: Cli, folder: Path) -> None:
    (folder / "p.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n[]\n")
    outcome = cli("generate", "--prompts-file", "p.jsonl")
    assert outcome.code == 2 and "p.jsonl, line 2: not an object with a prompt" in outcome.errors[0]
    assert files_in(folder) == ["p.jsonl"]


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"sampler": "ddpm", "steps": 5, "width": 36}, "width 36"),
        ({"clip_skip": 11}, "clip_skip 11: this model's text encoder has"),
        ({"prompt": "a (cat:1.2.3)", "prompt_syntax": "weighted"}, "is not a number"),
        ({"model": "./nowhere"}, "no such file or folder"),
        ({"model": "./corrupt.safetensors"}, "corrupt.safetensors"),
    ],
    ids=["size", "clip skip", "weight", "missing model", "corrupt model"],
)
def test_what_a_later_batch_can_not_be_is_found_before_the_first_picture(
    cli: Cli, things: Path, field: dict[str, object], says: str
) -> None:
    (things / "p.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "b"} | field) + "\n")
    before = files_in(things)
    outcome = cli("generate", "--prompts-file", "p.jsonl", "--steps", "1", "--out", "pictures")
    assert outcome.code in (1, 2) and len(outcome.errors) == 1 and says in outcome.errors[0]
    assert outcome.out == "" and files_in(things) == before


def test_what_is_cut_of_a_prompt_is_told_once(cli: Cli) -> None:
    outcome = cli("generate", "word " * 40 + "tail", "--steps", "1")
    assert outcome.code == 0 and outcome.err.count("left out") == 1
