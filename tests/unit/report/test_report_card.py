"""Model cards: what is known is right, what isn't is called unknown, and the Hub's library changes nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from sfumato.errors import InvalidConfig, InvalidRequest, OutputError
from sfumato.modelfiles.model_library import ALIASES
from sfumato.report.card.card_facts import (
    FACTS,
    README,
    CardFacts,
    DataSource,
    EmissionFacts,
    TrainingStage,
    facts_in,
    read_facts,
    write_facts,
)
from sfumato.report.card.evaluation_section import evaluation_in, read_evaluation
from sfumato.report.card.facts_of_run import facts_of_run
from sfumato.report.card.model_traits import ModelTraits, read_traits
from sfumato.report.card.published_checkpoints import PUBLISHED, published_facts, published_name
from sfumato.report.card.write_card import make_card, metadata, write_card
from sfumato.toml_files import to_toml
from sfumato.train.run_config import RunConfig
from sfumato.train.tasks.diffusion_task import DiffusionTraining
from support.tiny_pipeline import POCKET, reference_pipeline

RESULT = {
    "version": 1,
    "protocol": "pocket",
    "level": 0.95,
    "cells": [
        {
            "name": f"final-g{scale:g}-plms-50",
            "label": "final",
            "guidance_scale": scale,
            "sampler": "plms",
            "steps": 50,
            "pictures": 500,
            "scores": {
                "kid/efficientnet": {"value": 0.01 * scale, "low": 0.005, "high": 0.1},
                "clip-score": {"value": 0.25, "low": None, "high": None},
            },
        }
        for scale in (1.5, 7.0)
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of v1's parts, as diffusers writes it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    reference_pipeline(unet="v1-like", vae="v1-like").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def traits(folder: Path) -> ModelTraits:
    return read_traits(folder)


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def row(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_packaged_card_is_what_the_command_writes() -> None:
    """After new weights or facts: `make card`."""
    evaluation, plot = evaluation_in(POCKET)
    card = make_card(read_traits(POCKET), facts_in(POCKET), call="pocket", evaluation=evaluation, plot=plot)
    assert card == (POCKET / README).read_text("utf-8")


@pytest.mark.parametrize("name", [*PUBLISHED, None])
@pytest.mark.parametrize("evaluated", [False, True])
def test_the_hubs_library_changes_nothing(
    name: str | None, evaluated: bool, traits: ModelTraits, tmp_path: Path
) -> None:
    facts = published_facts(name) if name else CardFacts()
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    evaluation = read_evaluation(tmp_path / "result.json") if evaluated else None
    text = make_card(traits, facts, evaluation=evaluation)
    (tmp_path / README).write_text(text, encoding="utf-8")
    card = ModelCard.load(tmp_path / README)
    assert str(card) == text
    card.save(tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text(encoding="utf-8") == text
    assert isinstance(card.data, ModelCardData)
    assert card.data.to_dict() == metadata(facts, traits, evaluation)
    if evaluated:
        assert card.data.model_name == (facts.name or "unnamed")
        found = {(result.metric_type, result.metric_value) for result in card.data.eval_results or []}
        assert {("kid/efficientnet", 0.015), ("kid/efficientnet", 0.07), ("clip-score", 0.25)} <= found


def test_details_are_those_of_the_files(folder: Path, traits: ModelTraits) -> None:
    reference = reference_pipeline(unet="v1-like", vae="v1-like")
    details = section(make_card(traits, CardFacts()), "Details")
    for name in ("unet", "vae", "text_encoder"):
        assert row(details, name)[1] == f"{sum(p.numel() for p in getattr(reference, name).parameters()):,}"
    assert row(details, "pictures")[1] == "64 × 64 pixels" and row(details, "latents")[1].startswith("8 × 8 × 4")
    provenance = section(make_card(traits, CardFacts()), "Provenance")
    for part in ("unet", "vae"):
        file = folder / part / "diffusion_pytorch_model.safetensors"
        assert hashlib.sha256(file.read_bytes()).hexdigest() in row(provenance, file.relative_to(folder).as_posix())[1]


def test_a_v1_4_card_is_complete(traits: ModelTraits) -> None:
    """Every point of the published card's responsibility, licence, protocol and figures has its sentence."""
    card = make_card(traits, published_facts("v1-4"), call="CompVis/stable-diffusion-v1-4")
    assert "**Unknown:**" not in card and "Nothing that it asks for is missing." in card
    wanted = {
        "Intended use": ("safe", "bias|wrong", "art", "design", "Teaching", "generative models"),
        "Misuse and malicious use": (
            "Demeaning", "stereotypes", "without their consent", "Sexual content", "disinformation", "violence",
            "licensed material",
        ),
        "Out of scope": ("factual",),
        "Limits": (
            "photorealistic", "legible", "red cube", "Faces", "English", "lossy", "adult", "deduplicated", "memorised",
        ),
        "Bias": ("English", "cultures", "western"),
        "Safety checker": ("17 unwanted concepts", "embedding", "black", "unchecked"),
        "Training": ("LAION", "237,000", "2,048", "0.0001", "10%", "AdamW", "laion-aesthetics v2 5+"),
        "Evaluation": ("COCO", "50 PLMS steps", "10,000", "22.43", "not optimised for FID"),
        "Emissions": ("11,250 kg CO2eq", "150,000", "0.25 kW", "13,793", "18,000", "Lacoste"),
        "Citation": ("Rombach_2022_CVPR", "@software{sfumato"),
    }  # fmt: skip
    for title, words in wanted.items():
        text = section(card, title)
        assert [word for word in words if not any(part in text for part in word.split("|"))] == [], title
    data = ModelCard(card).data
    assert data.license == "creativeml-openrail-m" and data.base_model == "CompVis/stable-diffusion-v1-2"
    assert data.co2_eq_emissions["emissions"] == 11_250_000  # grams


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_checkpoint_has_its_own_stages_and_curve(name: str) -> None:
    """Steps by the published table: 237 + 194 thousand for v1-1, on from there for the others."""
    steps = {"v1-1": (237, 194), "v1-2": (237, 194, 515), "v1-3": (237, 194, 515, 195), "v1-4": (237, 194, 515, 225)}
    facts = published_facts(name)
    assert tuple(stage.steps for stage in facts.training) == tuple(1000 * thousand for thousand in steps[name])
    assert [point.guidance_scale for point in facts.curve] == [1.5, 2, 3, 4, 5, 6, 7, 8]
    assert published_name(ALIASES[name]) == name


def test_nothing_is_made_up_for_a_model_nobody_knows(traits: ModelTraits) -> None:
    card = make_card(traits, CardFacts())
    for invented in ("LAION", "COCO", "CompVis", "openrail", "11,250", "A100", "Robin", "photorealistic", "license:"):
        assert invented not in card.split("## Citation")[0]
    for name in ("who made it", "the licence of the weights", "its limits", "its biases", "how it was trained"):
        assert name in card.split("## Details")[0]
    assert set(ModelCard(card).data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert card.count("unknown") > 8


def test_known_facts_are_not_called_unknown(traits: ModelTraits) -> None:
    facts = CardFacts(name="mine", authors="me", license="mit", limits=("It is small.",))
    card = make_card(traits, facts)
    assert "# mine\n" in card and "- It is small." in section(card, "Limits")
    assert "who made it" not in card.split("## Details")[0] and "the licence" not in card.split("## Details")[0]


def test_cells_and_code_hold_whatever_a_fact_says(traits: ModelTraits) -> None:
    nasty = 'a | b\n| c"\\'
    facts = CardFacts(authors=nasty, example_prompt=nasty, training=(TrainingStage(name=nasty, data=nasty),))
    card = make_card(traits, facts, call=nasty)
    assert '| made by | a \\| b \\| c"\\ |' in card
    code = section(card, "Running it").split("```python\n")[1].split("```")[0]
    assert f"load_pipeline({json.dumps(nasty)})" in code
    compile(code, "card", "exec")


def test_a_config_cannot_steer_the_card(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "hostile")
    path = tmp_path / "hostile" / "scheduler" / "scheduler_config.json"
    values = json.loads(path.read_text()) | {"prediction_type": "a|b\n## Limits\n\x1b[31m", "beta_schedule": "x\n" * 99}
    path.write_text(json.dumps(values))
    card = make_card(read_traits(tmp_path / "hostile"), CardFacts())
    assert "| predicts | a\\|b## Limits[31m |" in card and card.count("\n## Limits\n") == 1 and "\x1b" not in card


def test_emissions_without_a_grid_are_unknown(traits: ModelTraits) -> None:
    facts = CardFacts(emissions=EmissionFacts(hours=10.0, hardware="T4"))
    card = make_card(traits, facts)
    assert row(section(card, "Emissions"), "emissions")[1] == "unknown" and "0.7 kWh" in card
    assert "what training emitted" in card.split("## Details")[0] and "co2_eq_emissions" not in card
    with pytest.raises(InvalidRequest, match="hours"):
        make_card(traits, replace(facts, emissions=EmissionFacts(hours=-1.0, hardware="T4")))


def test_facts_survive_their_file(tmp_path: Path) -> None:
    hostile = 'line\nbreak "quoted" \\ [table] = 猫 \u2028 \t'
    for number, facts in enumerate(
        [
            CardFacts(),
            published_facts("v1-4"),
            facts_in(POCKET),
            CardFacts(
                name=hostile,
                limits=(hostile, ""),
                data=(DataSource(name=hostile), DataSource(name="b", note=hostile)),
                training=(TrainingStage(name="a", steps=3, text_dropped=0.5),),
                emissions=EmissionFacts(hours=1.5, watts=10.0),
            ),
        ]
    ):
        write_facts(tmp_path / f"{number}.toml", facts)
        assert read_facts(tmp_path / f"{number}.toml") == facts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae = 'x'", "nmae"),
        ("name = 3", "name = 3"),
        ("limits = 'one'", "must be a list"),
        ("[[data]]\nby = 'x'", "name"),
        ("[emissions]\nhardware = 'T4'", "hours"),
        ("[emissions]\nhours = 'many'", "hours"),
        ("name = ", "not TOML"),
        ("x = " + "[" * 5000, "not TOML"),
    ],
)
def test_wrong_facts_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / FACTS).write_text(text)
    with pytest.raises(InvalidConfig, match=message) as caught:
        facts_in(tmp_path)
    assert FACTS in str(caught.value) and "\n" not in str(caught.value)


def test_a_readmes_plain_fields_are_taken_over(tmp_path: Path) -> None:
    front = (
        'license: mit\nlanguage: [en, de]\ntags:\n- a\n- 3\n- {b: c}\nbase_model: x/y\nlicense_link: "a\\u001b[31m"\n'
    )
    (tmp_path / README).write_text(f"---\n{front}---\n# x\n", encoding="utf-8")
    assert facts_in(tmp_path) == CardFacts(license="mit", language=("en", "de"), tags=("a",), base_model="x/y")
    (tmp_path / FACTS).write_text("license = 'apache-2.0'")
    assert facts_in(tmp_path) == CardFacts(license="apache-2.0")  # then the README is only what was written from it


@pytest.mark.parametrize(
    "front", ["[1, 2]", "just words", "", "license: !!python/object:os.system {}", "a: [", "? " * 3000]
)
def test_a_readme_of_anything_else_does_no_harm(front: str, tmp_path: Path) -> None:
    (tmp_path / README).write_text(f"---\n{front}\n---\n# x\n", encoding="utf-8")
    try:
        assert facts_in(tmp_path) == CardFacts()
    except InvalidConfig as error:
        assert README in str(error) and "\n" not in str(error)


def test_training_writes_card_and_facts_into_a_folder(folder: Path, traits: ModelTraits, tmp_path: Path) -> None:
    facts = CardFacts(name="trained", training=(TrainingStage(name="only", steps=10, batch=4),))
    reference_pipeline(unet="v1-like", vae="v1-like").save_pretrained(tmp_path)
    path = write_card(tmp_path, facts)
    assert facts_in(tmp_path) == facts and path == tmp_path / README
    assert path.read_text("utf-8") == make_card(traits, facts)
    with pytest.raises(OutputError, match="exists"):
        write_card(tmp_path, facts)
    write_card(tmp_path, replace(facts, name="again"), overwrite=True)
    assert "# again\n" in path.read_text("utf-8")


def test_a_runs_folder_gives_the_facts_a_card_begins_with(tmp_path: Path, traits: ModelTraits) -> None:
    config = DiffusionTraining(run=RunConfig(steps=100, batch=8), caption_dropout=0.1)
    (tmp_path / "config.toml").write_text(to_toml(config))
    planned = facts_of_run(tmp_path, name="mine")
    assert planned.training == (TrainingStage(name="mine", steps=100, batch=8, text_dropped=0.1),)
    assert planned.emissions is None
    values = {"started": "a", "seconds": 7200.0, "device": "Tesla T4", "devices": 2, "first_step": 0, "last_step": 40}
    (tmp_path / "sessions.jsonl").write_text(json.dumps(values) + "\n")
    trained = facts_of_run(tmp_path, name="mine", region="fra")
    assert trained.training[0].steps == 40 and trained.training[0].hours == 2.0
    card = make_card(traits, trained)
    assert "0.07 kW × 2 × 2 h" in card and "| mine | unknown | 40 | 8 | 320 |" in card
    (tmp_path / "sessions.jsonl").write_text(json.dumps(values | {"device": "an unknown one"}) + "\n")
    assert facts_of_run(tmp_path).emissions is None
    (tmp_path / "config.toml").write_text("not toml")
    with pytest.raises(InvalidConfig, match=r"config\.toml is not TOML"):
        facts_of_run(tmp_path)


def test_an_evaluation_is_shown_with_its_intervals(traits: ModelTraits, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(RESULT))
    assert read_evaluation(tmp_path) == read_evaluation(tmp_path / "scores.json")
    card = make_card(traits, CardFacts(), evaluation=read_evaluation(tmp_path), plot="a b.svg")
    text = section(card, "Evaluation")
    assert "(<a b.svg>)" in text
    assert "pocket, model final, sampler plms, steps 50; in brackets" in text  # what differs is in the table
    assert row(text, "guidance") == ["guidance", "pictures", "KID (efficientnet)", "CLIP score"]
    assert row(text, "1.5") == ["1.5", "500", "0.015 (0.005 to 0.1)", "0.25"]


def test_an_evaluation_says_what_its_numbers_rest_on(traits: ModelTraits, tmp_path: Path) -> None:
    judge = {"name": "clip", "file": "judge.bin", "sha256": "c" * 64, "resize": "none"}
    told = {
        "run": {"prompts": 1, "prompts_sha256": "a" * 64, "seed": 3},
        "reference": {"pictures": 500, "sha256": "b" * 64},
        "networks": [judge],
        "dimensions": {"clip": 16},
        "notes": ["Unlike the protocol: steps 5."],
        "made_with": {"final": {"model_sha256": "d" * 64}},
    }
    (tmp_path / "scores.json").write_text(json.dumps(RESULT | told))
    (tmp_path / "curves.svg").write_text("")
    evaluation, plot = evaluation_in(tmp_path)
    assert evaluation is not None
    text = section(make_card(traits, CardFacts(), evaluation=evaluation, plot=plot), "Evaluation")
    for line in (
        f"- 1 prompt, in a list of SHA-256 `{'a' * 64}`; prompt i has seed 3 + i.",
        f"- Distances are to 500 pictures of SHA-256 `{'b' * 64}`.",
        f"- Judged by clip: judge.bin, SHA-256 `{'c' * 64}`.",
        "- Features: 16 of clip.",
        "- Unlike the protocol: steps 5.",
        "![the evaluation's curve](<curves.svg>)",
    ):
        assert line in text.splitlines()
    assert evaluation.models == {"d" * 64}
    for absent in told:  # what another program left out, or wrote otherwise, is not shown
        (tmp_path / "scores.json").write_text(json.dumps(RESULT | told | {absent: None}))
        assert len(read_evaluation(tmp_path).basis) == 5 - (absent != "made_with")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({}, "no cells"),
        ({"cells": []}, "no cells"),
        ({"cells": [3]}, "no cells"),
        ({"cells": [{"guidance_scale": 3}]}, "cell 1 has no scores"),
        ({"cells": [{"scores": {"fid": "low"}}]}, "cell 1, fid is not a number"),
        ({"cells": [{"scores": {"fid": {"value": "1"}}}]}, "cell 1, fid is not a number"),
    ],
)
def test_a_result_of_something_else_is_refused(result: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(InvalidConfig, match=message):
        read_evaluation(tmp_path / "result.json")
    with pytest.raises(InvalidRequest, match=r"none\.json isn't there: `sfumato evaluate score` writes it"):
        read_evaluation(tmp_path / "none.json")


def test_other_names_have_no_published_facts() -> None:
    with pytest.raises(InvalidRequest, match=r"v1-4"):
        published_facts("v2-1")
    assert published_name("someone/else") is None and published_name(None) is None
