"""`sfumato generate` from the command line to files, with the embedded model."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import load_pipeline
from sfumato.pipeline.generation import Generation
from sfumato.pipeline.metadata import read_provenance
from sfumato.pipeline.pipeline import Pipeline
from sfumato.pipeline.request import Request
from support.command_line import Cli, files_in

QUICK = ("--steps", "2")


def test_one_prompt_gives_the_picture_the_library_gives(cli: Cli) -> None:
    outcome = cli("generate", "a red heart", "--seed", "5", "--out", "heart.png", *QUICK)
    assert (outcome.code, outcome.lines) == (0, ["heart.png"])
    expected = load_pipeline("pocket").generate("a red heart", seed=5, steps=2)
    with Image.open("heart.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected.images[0]))
    assert read_provenance(Path("heart.png")) == expected.provenance[0]


def test_several_prompts_and_seeds_are_numbered_and_a_second_run_replaces_nothing(cli: Cli, folder: Path) -> None:
    command = ("generate", "a red heart", "flag: Japan", "--count", "2", "--seed", "7", "--sheet", *QUICK)
    first = cli(*command)
    assert first.lines == [
        "pictures/00001-7-a-red-heart.png",
        "pictures/00002-8-a-red-heart.png",
        "pictures/00003-7-flag-japan.png",
        "pictures/00004-8-flag-japan.png",
        "pictures/00005-7-sheet.png",
    ]
    before = {name: (folder / name).read_bytes() for name in first.lines}
    second = cli(*command)
    assert second.code == 0 and len(second.lines) == 5 and not set(first.lines) & set(second.lines)
    assert {name: (folder / name).read_bytes() for name in first.lines} == before
    # The same command makes the same files.
    assert [(folder / name).read_bytes() for name in second.lines] == list(before.values())
    assert files_in(folder) == sorted(first.lines + second.lines)


def test_json_is_one_document_that_tells_everything(cli: Cli, folder: Path) -> None:
    outcome = cli("generate", "rocket", "--json", "--sheet", "--out", "here", "--sampler", "euler", *QUICK)
    document = json.loads(outcome.out)
    (picture,) = document["pictures"]
    assert picture["path"] == "here/00001-0-rocket.png" and document["sheet"] == "here/00002-0-sheet.png"
    assert picture["request"]["sampler"] == "euler" and picture["request"]["width"] == 128
    recorded = read_provenance(folder / picture["path"])
    assert recorded is not None and json.loads(recorded.to_json()) == {
        name: value for name, value in picture.items() if name not in ("path", "model_calls")
    }
    assert picture["model_calls"] == 2  # Euler asks once a step


def test_an_adaptive_sampler_says_how_often_it_asked(cli: Cli) -> None:
    loose = ("generate", "rocket", "--sampler", "dpm_adaptive", "--rtol", "1", "--atol", "1")
    expected = load_pipeline("pocket").generate("rocket", sampler="dpm_adaptive", rtol=1.0, atol=1.0).model_calls
    outcome = cli(*loose, "--out", "a.png")
    assert outcome.lines == ["a.png"] and f"a.png: {expected[0]} UNet calls" in outcome.err.splitlines()
    silent = cli(*loose, "--out", "b.png", "--json")
    assert json.loads(silent.out)["pictures"][0]["model_calls"] == expected[0]
    assert "UNet calls" not in silent.err


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [((), [1, 1, 1]), (("--batch-size", "2"), [2, 1]), (("--batch-size", "2", "--deterministic"), [1, 1, 1])],
)
def test_how_many_pictures_run_together(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], sizes: list[int]
) -> None:
    ran: list[int] = []
    generate = Pipeline.generate

    def counted(self: Pipeline, prompt: list[Request], **options: Any) -> Generation:
        ran.append(len(prompt))
        return generate(self, prompt, **options)

    monkeypatch.setattr(Pipeline, "generate", counted)
    assert cli("generate", "rocket", "--count", "3", *flags, *QUICK).code == 0
    assert ran == sizes


def test_a_wrong_batch_size_is_refused(cli: Cli) -> None:
    for value in ("0", "many", "1025"):
        outcome = cli("generate", "rocket", "--batch-size", value, *QUICK)
        assert outcome.code == 2 and "batch_size" in outcome.errors[0] and "whole number" in outcome.errors[0]


def test_a_named_file_is_replaced_only_when_told(cli: Cli, folder: Path) -> None:
    cli("generate", "cat", "--out", "a.png", *QUICK)
    before = (folder / "a.png").read_bytes()
    refused = cli("generate", "dog", "--out", "a.png", *QUICK)
    assert refused.code == 1 and "pass --overwrite" in refused.err and (folder / "a.png").read_bytes() == before
    assert cli("generate", "dog", "--out", "a.png", "--overwrite", *QUICK).code == 0
    record = read_provenance(folder / "a.png")
    assert record is not None and record.request.prompt == "dog" and files_in(folder) == ["a.png"]


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_formats_carry_the_record(cli: Cli, folder: Path, suffix: str) -> None:
    outcome = cli("generate", "cat face", "--format", suffix, "--no-watermark", *QUICK)
    assert outcome.lines == [f"pictures/00001-0-cat-face.{suffix}"]
    record = read_provenance(folder / outcome.lines[0])
    assert record is not None and record.request.prompt == "cat face" and record.watermark == "off"


def test_prompts_from_files(cli: Cli, folder: Path) -> None:
    cli("generate", "a red heart", "--out", "start.png", *QUICK)
    (folder / "prompts.txt").write_text("rocket\n\n  cat face \n")
    (folder / "prompts.jsonl").write_text(
        json.dumps({"prompt": "blue heart", "seed": 3, "sampler": "ddim"})
        + "\n"
        + json.dumps({"prompt": "blue heart", "init_image": "start.png", "strength": 1.0})
        + "\n"
    )
    plain = json.loads(cli("generate", "--prompts-file", "prompts.txt", "--json", *QUICK).out)
    assert [picture["request"]["prompt"] for picture in plain["pictures"]] == ["rocket", "cat face"]
    rich = json.loads(cli("generate", "--prompts-file", "prompts.jsonl", "--json", *QUICK).out)
    first, second = (picture["request"] for picture in rich["pictures"])
    assert (first["seed"], first["sampler"], first["steps"]) == (3, "ddim", 2)
    assert second["init_image"]["width"] == 128 and second["strength"] == 1.0
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "strength": 0.5}\n')
    wrong = cli("generate", "--prompts-file", "prompts.jsonl")
    assert wrong.code == 2 and "prompts.jsonl, line 2: strength 0.5 needs a picture" in wrong.err
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "stepps": 3}\n')
    wrong = cli("generate", "--prompts-file", "prompts.jsonl")
    assert wrong.code == 2 and "line 2" in wrong.err and "did you mean 'steps'?" in wrong.err


def test_an_empty_prompt_is_legal_and_a_book_is_cut_and_said(cli: Cli) -> None:
    assert cli("generate", "", *QUICK).lines == ["pictures/00001-0.png"]
    outcome = cli("generate", "word " * 10_000, "--out", "long.png", *QUICK)
    assert outcome.code == 0 and outcome.errors == []
    assert any("left out" in line and len(line) < 500 for line in outcome.err.splitlines())
    record = read_provenance(Path("long.png"))
    assert record is not None and record.truncated.count("word") > 9_900


def test_a_random_seed_is_drawn_and_recorded(cli: Cli) -> None:
    seeds = {
        json.loads(cli("generate", "cat", "--seed", "random", "--json", *QUICK).out)["pictures"][0]["request"]["seed"]
        for _ in range(2)
    }
    assert len(seeds) == 2


def test_pictures_are_not_drawn_into_a_file(cli: Cli) -> None:
    outcome = cli("generate", "a red heart", "--show", *QUICK)
    assert outcome.lines == ["pictures/00001-0-a-red-heart.png"]
    assert outcome.err == "warning: the pictures are not shown: this is not a terminal\n"
    assert cli("generate", "a red heart", *QUICK).err == ""


def test_settings_come_from_flags_then_the_environment_then_the_project(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sfumato.toml").write_text('sampler = "euler"\nsteps = 2\nseed = 4\nout = "from-toml"\nsafety = "off"\n')
    monkeypatch.setenv("SFUMATO_SEED", "9")
    outcome = cli("generate", "cat", "--sampler", "ddim", "--json")
    (picture,) = json.loads(outcome.out)["pictures"]
    request = picture["request"]
    assert (request["sampler"], request["seed"], request["steps"]) == ("ddim", 9, 2)
    assert picture["path"].startswith("from-toml/")
    assert "no safety checker" not in outcome.err  # safety is off


def test_comments_in_a_file_of_prompts_are_no_prompts(cli: Cli, folder: Path) -> None:
    (folder / "p.txt").write_text("# what hangs in the hall\nrocket\n\n  # and\n\\#1 heart\n")
    made = json.loads(cli("generate", "--prompts-file", "p.txt", "--json", "--steps", "1").out)["pictures"]
    assert [picture["request"]["prompt"] for picture in made] == ["rocket", "#1 heart"]


def test_prompts_come_from_stdin_and_from_no_pipe_that_nobody_may_write_to(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("rocket\nSchlüssel\n".encode())))
    made = json.loads(cli("generate", "--prompts-file", "-", "--json", "--steps", "1").out)["pictures"]
    assert [picture["request"]["prompt"] for picture in made] == ["rocket", "Schlüssel"]
    os.mkfifo("p.txt")
    outcome = cli("generate", "--prompts-file", "p.txt")
    line = "sfumato: the prompts file p.txt is a pipe: write --prompts-file - and send the prompts to stdin"
    assert (outcome.code, outcome.errors) == (2, [line])


def test_threads_are_as_many_as_asked_for(cli: Cli, folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        outcome = cli("generate", "rocket", "--threads", str(before + 1), "--json", "--steps", "1")
        assert json.loads(outcome.out)["pictures"][0]["threads"] == before + 1
    finally:
        torch.set_num_threads(before)
    assert "threads 0 must be a whole number from 1 to 1024" in cli("generate", "rocket", "--threads", "0").err
