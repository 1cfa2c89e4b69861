"""Which source of a setting wins, and what wrong sources are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.cli.options.flags import REQUEST_FLAGS, RUN_FLAGS
from sfumato.cli.options.settings import KEYS, RunSettings, read_settings
from sfumato.errors import InvalidConfig, InvalidRequest
from sfumato.modelfiles.load_options import LoadOptions
from sfumato.pipeline.field_text import field_text
from sfumato.pipeline.presets import PRESET
from sfumato.pipeline.request import Request


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables with an own place for the user's config, which sets everything tried here."""
    user = tmp_path / "config" / "sfumato" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('steps = 1\nsampler = "heun"\nwidth = 8\neta = 0.25\n')
    return {"XDG_CONFIG_HOME": str(tmp_path / "config")}


def test_each_source_wins_over_the_ones_behind_it(tmp_path: Path, environment: dict[str, str]) -> None:
    inside = tmp_path / "project" / "deep" / "inside"
    inside.mkdir(parents=True)
    (tmp_path / "project" / "sfumato.toml").write_text('steps = 2\nsampler = "ddim"\nwidth = 16\n')
    environment |= {"SFUMATO_STEPS": "3", "SFUMATO_SAMPLER": "euler", "SFUMATO_UNKNOWN": "ignored"}
    settings = read_settings({"steps": "4"}, environment=environment, folder=inside)
    request = settings.request("a cat")
    assert (request.steps, request.sampler, request.width, request.eta) == (4, "euler", 16, 0.25)
    assert request.height is None and request.prompt == "a cat"


def test_names_in_the_environment_that_are_no_settings_are_told(
    environment: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment |= {"SFUMATO_STEP": "3", "SFUMATO_UNKNOWN": "x", "SFUMATO_HOME": "/", "SFUMATO_BENCH_ROUNDS": "1"}
    environment |= {"SFUMATO_STEPS": "3", "SFUMATO_MODEL_PATH": "/", "SFUMATO_INSTRUCTIONS": "avx2"}
    with caplog.at_level("WARNING", logger="sfumato"):
        read_settings({}, environment=environment, folder=tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "SFUMATO_STEP is no setting: did you mean SFUMATO_STEPS?",
        "SFUMATO_UNKNOWN is no setting, and not used",
    ]


def test_the_nearest_project_file_counts_alone(tmp_path: Path, environment: dict[str, str]) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (tmp_path / "a" / "sfumato.toml").write_text("steps = 7\nseed = 7\n")
    (inside / "sfumato.toml").write_text("seed = 8\n")
    request = read_settings({}, environment=environment, folder=inside).request("")
    assert (request.seed, request.steps) == (8, 1)


def test_switches_are_read_from_text_and_from_toml(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "sfumato.toml").write_text("watermark = false\nema = false\n")
    environment["SFUMATO_EMA"] = "Yes"
    run = read_settings({"offline": "true"}, environment=environment, folder=tmp_path).run()
    assert run == RunSettings(watermark=False, options=LoadOptions(ema=True, offline=True))


def test_text_in_a_file_is_read_as_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / "sfumato.toml").write_text('seed = "random"\nwidth = "none"\nguidance_interval = [0.5, 3]\n')
    seeds = set()
    for _ in range(3):
        request = read_settings({}, environment={"XDG_CONFIG_HOME": str(tmp_path)}, folder=tmp_path).request("")
        seeds.add(request.seed)
        assert request.width is None and request.guidance_interval == (0.5, 3.0)
    assert len(seeds) > 1 and all(0 <= seed < 2**32 for seed in seeds)


def test_a_wrong_value_names_where_it_was_set(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "sfumato.toml").write_text('sampler = "plsm"\ndevice = 3\n')
    settings = read_settings({}, environment=environment, folder=tmp_path)
    with pytest.raises(InvalidRequest, match=r"did you mean 'plms'\?.*\(set in .*sfumato\.toml\)"):
        settings.request("")
    with pytest.raises(InvalidRequest, match=r"device 3 must be text \(set in .*sfumato\.toml\)"):
        settings.run()
    with pytest.raises(InvalidRequest, match=r"^steps 'x' must be a whole number from 1 to 1000$"):
        read_settings({"steps": "x", "sampler": "ddim"}, environment={}, folder=tmp_path).request("")


def test_the_origin_is_the_one_of_the_value_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "sfumato.toml").write_text('spacing = "karras"\n')
    settings = read_settings({"sampler": "plms"}, environment={}, folder=tmp_path)
    with pytest.raises(InvalidRequest, match=r"^sampler 'plms' can't use .*\(set in .*sfumato\.toml\)$") as caught:
        settings.request("")
    assert caught.value.field == "spacing"


@pytest.mark.parametrize("text", ["stepps = 3", 'prompt = "a cat"', 'mask = "x.png"', "[generate]\nsteps = 3"])
def test_what_a_file_must_not_set_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "sfumato.toml").write_text(text)
    with pytest.raises(InvalidConfig, match=r"sfumato\.toml: the setting '(stepps|prompt|mask|generate)' is unknown"):
        read_settings({}, environment={"XDG_CONFIG_HOME": str(tmp_path)}, folder=tmp_path)


def test_every_field_has_a_flag_that_tells_its_default() -> None:
    defaults = Request(prompt="")
    flags = {flag.name: flag for flag in REQUEST_FLAGS}
    assert set(flags) == set(Request.__dataclass_fields__) - {"prompt"} | {PRESET}
    for name, flag in flags.items():
        value = getattr(defaults, name, "exact")
        if value not in (None, ""):
            assert flag.default == field_text(value), name
    run = {flag.name for flag in RUN_FLAGS}
    settings = {*RunSettings.__dataclass_fields__, *LoadOptions.__dataclass_fields__} - {"options", "vae", "token"}
    assert run | {"out", "format"} == settings
    assert set(KEYS) == (set(flags) | settings) - {"init_image", "mask"}


def test_instructions_that_are_none_are_refused(environment: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"SFUMATO_INSTRUCTIONS 'avx9' is unknown.*avx2"):
        read_settings({}, environment=environment | {"SFUMATO_INSTRUCTIONS": "avx9"}, folder=tmp_path)
