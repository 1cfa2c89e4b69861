"""The recipes' numbers against the model card's, written out here as it has them."""

from __future__ import annotations

import pytest

from sfumato.errors import InvalidRequest
from sfumato.pocket.training.pocket_recipes import POCKET_RECIPES
from sfumato.toml_files import from_values, to_values
from sfumato.train.recipes import V1, lineage
from sfumato.train.tasks.diffusion_task import DiffusionTraining

# checkpoint: (from, steps, resolution, text dropped)
CARD = {
    "v1-1-256": (None, 237_000, 256, 0.0),
    "v1-1": ("v1-1-256", 194_000, 512, 0.0),
    "v1-2": ("v1-1", 515_000, 512, 0.0),
    "v1-3": ("v1-2", 195_000, 512, 0.1),
    "v1-4": ("v1-2", 225_000, 512, 0.1),
}


@pytest.mark.parametrize("name", CARD)
def test_v1_stages_are_the_cards(name: str) -> None:
    stage = V1[name]
    training = stage.training
    assert isinstance(training, DiffusionTraining)
    assert (stage.start, training.run.steps, stage.resolution, training.caption_dropout) == CARD[name]
    assert training.run.batch == 32 * 8 * 2 * 4
    assert training.run.accumulate == 2
    optimizer = training.run.optimizer
    assert (optimizer.kind, optimizer.learning_rate, optimizer.warmup_steps) == ("adamw", 1e-4, 10_000)
    assert optimizer.schedule == "constant"
    assert training.run.ema_decay == 0.9999
    assert training.noise.prediction == "epsilon"
    assert training.scaling_factor == 0.18215
    assert training.text_rate == 0.0
    assert training.unet.sample_size == stage.resolution // 8


def test_the_v1_4_lineage_saw_485_and_1913_million_samples() -> None:
    assert set(V1) == set(CARD)
    stages = [V1[name] for name in lineage(V1, "v1-4")]
    assert [stage.resolution for stage in stages] == [256, 512, 512, 512]
    assert round(sum(stage.samples for stage in stages if stage.resolution == 256) / 1e6) == 485
    assert round(sum(stage.samples for stage in stages if stage.resolution == 512) / 1e6) == 1913


def test_every_start_exists_and_every_config_survives_its_values() -> None:
    for recipe in (V1, *POCKET_RECIPES.values()):
        for name, stage in recipe.items():
            assert lineage(recipe, name)[-1] == name
            assert from_values(type(stage.training), to_values(stage.training)) == stage.training


def test_an_unknown_stage_is_named_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"v1-5.*v1-4"):
        lineage(V1, "v1-5")
