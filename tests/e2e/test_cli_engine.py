"""`--engine` and `--preset`: what ran is in the record, and replay runs it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.pictures.pixels import psnr
from sfumato.pipeline.replaying import recorded_in
from support.command_line import Cli


def test_the_exact_engine_is_recorded_and_replayed(cli: Cli) -> None:
    for engine in ("eager", "winograd"):
        assert cli("generate", "a red heart", "--steps", "3", "--engine", engine, "--out", f"{engine}.png").code == 0
        assert recorded_in(Path(f"{engine}.png")).engine == engine
    assert psnr(np.asarray(Image.open("winograd.png")), np.asarray(Image.open("eager.png"))) >= 50.0
    assert json.loads(cli("replay", "winograd.png", "--json").out)["identical"] is True


def test_an_unknown_engine_is_one_line_with_the_nearest_name(cli: Cli) -> None:
    outcome = cli("generate", "x", "--engine", "winogard")
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert "did you mean 'winograd'" in outcome.errors[0]


def test_a_preset_says_what_it_gives_up_and_is_replayed_from_its_fields(cli: Cli) -> None:
    outcome = cli("generate", "a red heart", "--preset", "turbo", "--steps", "3", "--out", "turbo.png")
    assert outcome.code == 0
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("preset turbo: "))
    assert "3 steps of dpmpp_2m for 50 of plms" in line and "depths" in line and "tokens" in line
    assert recorded_in(Path("turbo.png")).request.cache_interval > 1
    assert json.loads(cli("replay", "turbo.png", "--json").out)["identical"] is True
