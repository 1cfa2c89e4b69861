"""Presets are fields by another name: what wins over them, what they say they give up, and that they are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfumato import Pipeline, Request, load_pipeline
from sfumato.cli.options.settings import read_settings
from sfumato.errors import InvalidRequest
from sfumato.pipeline.presets import PRESETS, gives_up, with_preset
from sfumato.pipeline.setting_grid import grid_requests, parse_axis
from sfumato.report.evaluation.comparing import parse_side
from support.tiny_pipeline import reference_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    path = tmp_path_factory.mktemp("model")
    reference_pipeline().save_pretrained(path)
    return load_pipeline(path, device="cpu", safety="off")


def test_exact_is_what_a_request_is_by_itself() -> None:
    exact = Request(prompt="a", **with_preset({"preset": "exact"}))
    assert exact == Request(prompt="a") and gives_up(exact) == ""
    assert {frozenset(preset.fields) for preset in PRESETS.values()} >= {frozenset(PRESETS["exact"].fields)}
    for preset in PRESETS.values():
        assert preset.fields.keys() <= PRESETS["exact"].fields.keys()  # so that exact takes everything back


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "exact"])
def test_every_other_preset_is_valid_and_says_what_it_gives_up(name: str) -> None:
    request = Request(prompt="a", **with_preset({"preset": name}))
    words = gives_up(request)
    assert "\n" not in words and f"{request.steps} steps of {request.sampler} for 50 of plms" in words
    assert ("depths" in words) == (request.cache_interval > 1)
    assert ("tokens" in words) == (request.token_merging > 0)


def test_other_fields_win() -> None:
    assert with_preset({"steps": 7, "preset": "fast"})["steps"] == 7
    assert with_preset({"guidance_interval": None, "preset": "turbo"})["guidance_interval"] is None
    plain = with_preset({"sampler": "ddim", "preset": "fast"})
    assert "spacing" not in plain and Request(prompt="a", **plain).sampler == "ddim"
    assert with_preset({"sampler": "euler", "spacing": "beta", "preset": "fast"})["spacing"] == "beta"
    assert with_preset({"steps": 3}) == {"steps": 3}


@pytest.mark.parametrize(("name", "says"), [("fsat", "did you mean 'fast'"), (3, "must be text"), (["fast"], "text")])
def test_names_that_are_none_are_refused(name: object, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        with_preset({"preset": name})


def test_in_settings_a_preset_wins_over_weaker_sources_only(tmp_path: Path) -> None:
    (tmp_path / "sfumato.toml").write_text('steps = 30\nguidance_scale = 3\nsampler = "ddim"\n')
    fast = PRESETS["fast"].fields

    def request(given: dict[str, str], **environment: str) -> Request:
        return read_settings(
            given, environment={"XDG_CONFIG_HOME": str(tmp_path), **environment}, folder=tmp_path
        ).request("")

    chosen = request({"preset": "fast"})
    assert (chosen.steps, chosen.sampler, chosen.guidance_scale) == (fast["steps"], fast["sampler"], 3.0)
    assert request({"preset": "fast", "steps": "9"}).steps == 9
    assert request({"steps": "9"}, SFUMATO_PRESET="fast").steps == 9
    assert request({"preset": "exact"}, SFUMATO_PRESET="turbo") == Request(prompt="", guidance_scale=3.0)
    with pytest.raises(InvalidRequest, match=r"preset 'x' is unknown.*\(set in SFUMATO_PRESET\)"):
        request({}, SFUMATO_PRESET="x")


def test_a_grid_and_a_comparison_take_presets() -> None:
    rows = grid_requests(Request(prompt="a"), parse_axis("preset=exact,fast"), parse_axis("steps=4,5"))
    assert [[cell.steps for cell in row] for row in rows] == [[4, 4], [5, 5]]
    assert [cell.sampler for cell in rows[0]] == ["plms", PRESETS["fast"].fields["sampler"]]
    assert parse_axis("preset=fast").labels == ("preset fast",)
    with pytest.raises(InvalidRequest, match="did you mean 'fast'"):
        parse_axis("preset=fsat")
    assert parse_side("pocket", ["preset=turbo", "steps=4"]).fields == {**PRESETS["turbo"].fields, "steps": 4}


def test_the_library_takes_one_and_records_its_fields(pipeline: Pipeline) -> None:
    options: dict[str, Any] = {"seed": 3, "steps": 4, "guidance_scale": 4.0}
    made = pipeline.generate("crown", preset="turbo", **options)
    fields = {**PRESETS["turbo"].fields, **options}
    assert all(getattr(made.requests[0], name) == value for name, value in fields.items())
    again = pipeline.generate(made.provenance[0].request)
    assert again.provenance == made.provenance
    assert pipeline.generate("crown", **fields).provenance == made.provenance
    assert pipeline.generate("crown", **options).provenance[0].pixels_sha256 != made.provenance[0].pixels_sha256


def test_without_guidance_half_the_rows_are_computed(pipeline: Pipeline) -> None:
    """Rows that the UNet's first convolution sees: two a step inside the interval, one outside."""
    rows: list[int] = []
    handle = pipeline.model.unet.conv_in.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        pipeline.generate("crown", steps=6, sampler="euler", guidance_interval=(1.0, 100.0), guidance_scale=4.0)
    finally:
        handle.remove()
    assert rows.count(2) + rows.count(1) == 6 and 0 < rows.count(1) < 6
    assert rows == sorted(rows, reverse=True)
