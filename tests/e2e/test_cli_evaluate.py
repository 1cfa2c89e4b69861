"""`sfumato evaluate` from a list of prompts to a page, with the embedded model and few steps; and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from sfumato.modelfiles.publish_model import publish_clip
from sfumato.models.clip import Clip, ClipConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.clip_vision import ClipVisionConfig
from support.command_line import Cli
from support.tiny import randomise
from support.tiny_pipeline import POCKET


def random_clip(folder: Path) -> Path:
    text = ClipTextConfig(vocab_size=4000, positions=20, width=24, hidden=48, layers=1, heads=4)
    vision = ClipVisionConfig(
        image_size=32, patch_size=8, width=32, hidden=64, layers=1, heads=2, projection_dim=16, activation="gelu"
    )
    clip = randomise(Clip(ClipConfig(text=text, vision=vision, eos_id=3999)), 0)
    assert isinstance(clip, Clip)
    with torch.no_grad():
        clip.logit_scale.fill_(1.0)
    publish_clip(clip, POCKET / "tokenizer", folder)
    return folder


def test_from_prompts_to_a_page(cli: Cli, folder: Path) -> None:
    (folder / "words.txt").write_text("a red heart\n\na cat\na rocket\n", encoding="utf-8")
    made = cli("evaluate", "prompts", "words.txt", "--count", "3")
    assert made.code == 0
    assert "3 prompts, SHA-256" in made.out
    assert "1 blank" in made.err

    run = ("evaluate", "run", "out", "-m", "pocket", "--prompts", "prompts.jsonl", "--protocol", "pocket")
    grid = ("--guidance", "2,5", "--steps", "2")
    assert cli(*run, *grid, "--shard", "2/2").lines == ["out: 2 pictures painted"]
    unfinished = cli("evaluate", "score", "out", "--clip", "clip")
    assert unfinished.code == 2
    assert cli(*run, *grid).lines == ["out: 4 pictures painted"]
    assert cli(*run, *grid).lines == ["out: 0 pictures painted"]
    changed = cli(*run, "--guidance", "2,6", "--steps", "2")
    assert changed.code == 2
    assert "holds an evaluation with other cells" in changed.errors[0]

    random_clip(folder / "clip")
    scored = cli(
        "evaluate", "score", "out", "--clip", "clip", "--reference", "out/pictures/pocket-g2-plms-2",
        "--preference", "clip", "--resamples", "10", "--json",
    )  # fmt: skip
    assert scored.code == 0, scored.err
    cells = json.loads(scored.out)["cells"]
    # the reference is the first cell itself
    assert cells[0]["scores"]["cmmd"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert cells[1]["scores"]["cmmd"]["value"] > 0.0
    assert -1.0 <= cells[0]["scores"]["clip-score"]["value"] <= 1.0

    # the scale of the judge, here e, is the only difference to its CLIP score
    for cell in cells:
        expected = math.e * cell["scores"]["clip-score"]["value"]
        assert cell["scores"]["preference/clip"]["value"] == pytest.approx(expected, rel=1e-5)
    assert sum(cell["scores"]["preferred/clip"]["value"] for cell in cells) == pytest.approx(1.0)
    alone = cli("evaluate", "score", "out", "--preference", "clip", "--preference", "./clip")
    assert "two of --preference have one name" in alone.errors[0]

    assert cli("evaluate", "plot", "out", "-o", "c.png", "--no-published").code == 0
    assert (folder / "c.png").read_bytes().startswith(b"\x89PNG")
    assert cli("evaluate", "report", "out").code == 0
    page = (folder / "out" / "report.html").read_text()
    assert "a red heart" in page
    assert "Unlike the protocol: guidance scales 2.0, 5.0, steps 2." in page

    same = cli("evaluate", "compare", "out/pictures/pocket-g2-plms-2", "out/pictures/pocket-g2-plms-2")
    assert same.code == 0
    assert "∞" in same.out
    gate = ("evaluate", "compare", "out/pictures/pocket-g2-plms-2", "out/pictures/pocket-g5-plms-2")
    assert cli(*gate, "--least-psnr", "99").code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "prompts", "nowhere.txt"), "nowhere.txt can't be read"),
        (("evaluate", "score", "nowhere"), "nowhere holds no evaluation"),
        (("evaluate", "run", "out", "-m", "pocket"), "give the list of prompts with --prompts"),
        (("evaluate", "run", "out", "-m", "pocket", "--guidance", "a"), "write numbers with commas"),
        (("evaluate", "run", "out", "-m", "pocket", "--protocol", "cards"), "use card, pocket"),
        (("evaluate", "run", "out", "-m", "pocket", "--on", "moon"), "use here, or ray"),
        (("evaluate", "compare", "pocket", "pocket"), "give what to paint with --prompts"),
        (("evaluate", "probe", "prompts", "nobody"), "no probe is called 'nobody'"),
        (("evaluate", "reproduce-card", "pocket", "--prompts", "x.txt"), "nothing to score with"),
        (("evaluate", "reproduce-card", "pocket", "--prompts", "x", "--inception", "no.pth"), "no.pth: no such weight"),
    ],
)
def test_what_can_not_be_evaluated_is_one_line(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert message in outcome.errors[0]
