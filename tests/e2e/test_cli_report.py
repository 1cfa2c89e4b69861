"""`sfumato emissions` and `sfumato card` as a user meets them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import sfumato
from sfumato import load_pipeline
from sfumato.modelfiles.library_index import Record, change_records
from sfumato.modelfiles.model_library import ALIASES
from support.command_line import Cli

POCKET = Path(sfumato.__file__).parent / "assets" / "pocket"


def test_the_cards_emissions_with_the_constants_that_give_them(cli: Cli) -> None:
    shown = cli("emissions", "--reproduce-card")
    assert shown.code == 0
    for figure in ("11,250", "13,793", "18,000", "0.25 kW", "0.3678", "37,500"):
        assert figure in shown.out
    documents = json.loads(cli("emissions", "--reproduce-card", "--json").out)
    assert [round(document["kg_co2eq"], 1) for document in documents] == [11_250.0, 13_792.5, 18_000.0]
    assert all(constant["source"] for document in documents for constant in document["constants"])


def test_an_estimate_names_every_source(cli: Cli) -> None:
    arguments = ("emissions", "--hardware", "A100 PCIe 40GB", "--hours", "150000", "--region", "aws/us-east-1")
    shown = cli(*arguments)
    assert "13,793 kg CO2eq" in shown.out and "A100 Tensor Core GPU datasheet" in shown.out and "2019" in shown.out
    assert "km by an average passenger car" in shown.out
    document = json.loads(cli(*arguments, "--json").out)
    assert document["kwh"] == 37_500 and document["kg_co2eq"] == pytest.approx(13_792.5)


def test_a_command_is_measured(cli: Cli) -> None:
    shown = cli("emissions", "--region", "fra", "--json", "--measure", "--", sys.executable, "-c", "print('work')")
    assert shown.code == 0 and "work" in shown.err
    document = json.loads(shown.out)
    assert document["kwh"] > 0 and "codecarbon" in document["method"]
    assert cli("emissions", "--measure", "--", sys.executable, "-c", "raise SystemExit(3)").code == 1


def test_tables_are_listed(cli: Cli) -> None:
    assert "A100 SXM4 80GB" in cli("emissions", "--tables").out
    document = json.loads(cli("emissions", "--tables", "--json").out)
    assert len(document["grids"]) > 300 and len(document["hardware"]) > 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--hours"),
        (("--hours", "1", "--tables"), "--hours and --tables"),
        (("--hours", "-1", "--hardware", "T4"), "hours = -1"),
        (("--hours", "1", "--hardware", "A100 PCI"), "A100 PCIe 40GB"),
        (("--hours", "1", "--hardware", "T4", "--region", "us-east-"), "aws/us-east-2"),
        (("--hours", "1", "true"), "--measure"),
        (("--measure",), "--measure --"),
        (("--measure", "--", "no-such-program"), "no-such-program"),
        (("--run", "nowhere"), "--hours"),
    ],
)
def test_what_cannot_be_is_one_line(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    shown = cli("emissions", *arguments)
    assert shown.code == 2 and shown.out == "" and len(shown.errors) == len(shown.err.splitlines()) == 1
    assert message in shown.err


def test_the_packaged_card_is_shown_and_checked(cli: Cli, folder: Path) -> None:
    shown = cli("card", "pocket")
    assert shown.out == (POCKET / "README.md").read_text(encoding="utf-8")
    assert cli("card", "pocket", "--check").code == 0
    assert json.loads(cli("card", "pocket", "--json").out)["card"] == shown.out
    assert cli("card", "pocket", "--out", "CARD.md").lines == ["CARD.md"]
    assert (folder / "CARD.md").read_text(encoding="utf-8") == shown.out
    assert "CARD.md" in cli("card", "pocket", "--out", "CARD.md").err  # nothing is overwritten unasked
    (folder / "CARD.md").write_text(shown.out.replace("15,851,515", "15,851,516"), encoding="utf-8")
    differs = cli("card", "pocket", "--check", "--out", "CARD.md")
    assert differs.code == 1 and len(differs.errors) == 1 and "15,851,516" in differs.err
    assert cli("card", "pocket", "--out", "CARD.md", "--overwrite").code == 0
    assert cli("card", "pocket", "--check", "--out", "CARD.md").code == 0


def test_facts_asked_for_and_a_single_file(cli: Cli, folder: Path) -> None:
    shown = cli("card", "pocket", "--facts", "v1-4")
    assert "# Stable Diffusion v1-4" in shown.out and "11,250 kg CO2eq" in shown.out
    assert "another shape" in shown.err  # it says so where the files can't be those
    (folder / "own.toml").write_text('name = "mine"\nlicense = "mit"\n')
    assert cli("convert", "pocket", "single.safetensors").code == 0
    single = cli("card", "single.safetensors", "--facts", "own.toml")
    assert "license: mit" in single.lines and "# mine" in single.lines and "who made it" in single.out
    nameless = cli("card", "single.safetensors")
    assert "**Unknown:** who made it" in nameless.out and "# single" in nameless.lines


def test_a_published_model_that_was_pulled_has_its_facts(cli: Cli, folder: Path) -> None:
    """As `models pull v1-4` leaves it, with a README of its own; the weights are pocket's."""
    shutil.copytree(POCKET, folder / "pulled", ignore=shutil.ignore_patterns("card.toml", "README.md"))
    (folder / "pulled" / "README.md").write_text("---\nlicense: other\ntags: [theirs]\n---\n")
    record = Record(name="v1-4", path=str(folder / "pulled"), hub_id=ALIASES["v1-4"], revision="main")
    change_records(lambda records: records.update({"v1-4": record}))
    shown = cli("card", "v1-4")
    assert "# Stable Diffusion v1-4" in shown.lines and 'load_pipeline("CompVis/stable-diffusion-v1-4")' in shown.out
    assert "license: other" in shown.lines and "- theirs" in shown.lines and "11,250 kg CO2eq" in shown.out
    assert "another shape" in shown.err


def test_a_card_with_the_evaluation_of_other_weights_says_so(cli: Cli, folder: Path) -> None:
    cell = {"guidance_scale": 3.0, "pictures": 9, "scores": {"clip-score": {"value": 0.25}}}
    scores = {"protocol": "pocket", "cells": [cell], "made_with": {"m": {"model_sha256": "0" * 64}}}
    (folder / "scores.json").write_text(json.dumps(scores))
    shown = cli("card", "pocket", "--evaluation", "scores.json", "--plot", "curves.png", "--out", "CARD.md")
    assert shown.code == 0
    assert "of other weights than those of pocket" in shown.err
    assert "CARD.md refers to curves.png" in shown.err
    shutil.copytree(POCKET, folder / "brought")
    (folder / "scores.json").rename(folder / "brought" / "scores.json")
    brought = cli("card", "./brought")
    assert "| 3 | 9 | 0.25 |" in brought.lines


def test_files_that_are_not_read_are_no_other_weights(cli: Cli, folder: Path) -> None:
    """A safety checker and another variant beside them change neither what pictures say nor what the card compares."""
    shutil.copytree(POCKET, folder / "mine")
    (folder / "mine" / "safety_checker").mkdir()
    for extra in ("safety_checker/model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"):
        shutil.copy(POCKET / "vae" / "diffusion_pytorch_model.safetensors", folder / "mine" / extra)
    said = load_pipeline(folder / "mine", device="cpu").model.sha256
    cell = {"guidance_scale": 3.0, "pictures": 9, "scores": {"clip-score": {"value": 0.25}}}
    scores = {"protocol": "pocket", "cells": [cell], "made_with": {"m": {"model_sha256": said}}}
    (folder / "scores.json").write_text(json.dumps(scores))
    shown = cli("card", "./mine", "--evaluation", "scores.json")
    assert shown.code == 0 and "other weights" not in shown.err
    assert f"together `{said}`" in shown.out and "fp16" not in shown.out


def test_a_folders_own_evaluation_and_picture_go_together(cli: Cli, folder: Path) -> None:
    shutil.copytree(POCKET, folder / "brought")
    (folder / "brought" / "scores.json").unlink()
    assert "curves.png" not in cli("card", "./brought").out  # a picture of no scores
    cell = {"guidance_scale": 3.0, "pictures": 9, "scores": {"clip-score": {"value": 0.25}}}
    (folder / "scores.json").write_text(json.dumps({"protocol": "pocket", "cells": [cell]}))
    shutil.copy(folder / "scores.json", folder / "brought")
    assert "refers to curves.png" in cli("card", "./brought", "--out", "CARD.md").err
    beside = cli("card", "./brought", "--out", "brought/CARD.md")
    assert "refers to" not in beside.err and "(<curves.png>)" in (folder / "brought" / "CARD.md").read_text("utf-8")
    (folder / "brought" / "scores.json").write_text("{")
    assert cli("card", "./brought").code == 2
    given = cli("card", "./brought", "--evaluation", "scores.json")
    assert given.code == 0 and "| 3 | 9 | 0.25 |" in given.lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "no model 'nothing'"),
        (("pocket", "--facts", "v1-9"), "v1-4"),
        (("pocket", "--facts", "bad.toml"), "bad.toml"),
        (("pocket", "--evaluation", "none.json"), "none.json"),
        (("pocket", "--evaluation", "bad.toml"), "bad.toml"),
        (("pocket", "--check", "--out", "none.md"), "none.md"),
    ],
)
def test_a_card_that_cannot_be_is_one_line(cli: Cli, folder: Path, arguments: tuple[str, ...], message: str) -> None:
    (folder / "bad.toml").write_text("nmae = 'x'")
    shown = cli("card", *arguments)
    assert shown.code == 2 and shown.out == "" and len(shown.errors) == len(shown.err.splitlines()) == 1
    assert message in shown.err
