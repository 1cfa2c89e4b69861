"""What is trained on and what is held out, and what a run would take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato.data.samples import spread
from sfumato.data.shard_writer import as_stored, write_shards
from sfumato.errors import DataError, InvalidConfig
from sfumato.pocket.dataset.emoji import open_emoji
from sfumato.pocket.dataset.scenes import SceneSet
from sfumato.train.forecast import Plan, forecast
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.training_data import DataConfig, differently_called, open_pictures, split
from support.made_data import emoji_set, pictures
from support.train_toy import ToyTask, toy_config


@pytest.mark.parametrize("size", [1, 2, 49, 50, 51, 1000])
@pytest.mark.parametrize("every", [0, 2, 7, 50])
def test_every_sample_is_trained_on_or_held_out(size: int, every: int) -> None:
    kept, apart = split(size, every)
    assert sorted([*kept, *apart]) == list(range(size))
    assert len(kept) == len(list(kept))
    assert len(apart) == (size // every if every else 0)
    assert list(kept[:3]) == list(kept)[:3]
    with pytest.raises(IndexError):
        kept[len(kept)]


def test_a_split_of_hundreds_of_millions_takes_no_memory() -> None:
    kept, apart = split(600_000_000, 50)
    assert len(kept) + len(apart) == 600_000_000
    assert kept[len(kept) - 1] == 599_999_998
    assert apart[-1] == 599_999_999


def test_shards_are_split_and_the_emoji_set_by_its_own_parts(tmp_path: Path) -> None:
    source = pictures(10)
    write_shards(source, as_stored(source), tmp_path / "any", name="any", samples_per_shard=4)
    found = open_pictures(tmp_path / "any", DataConfig(held_out=5), seed=0)
    assert [found.held_out.record(i).key for i in range(2)] == ["004", "009"]
    assert not found.known
    few = open_pictures(tmp_path / "any", DataConfig(held_out=50), seed=0)
    assert few.known
    assert len(few.training) == 10
    with pytest.raises(InvalidConfig, match="emoji set"):
        open_pictures(tmp_path / "any", DataConfig(scenes=8), seed=0)

    emoji_set(tmp_path / "emoji")
    subjects = open_emoji(tmp_path / "emoji").split("train")
    alone = open_pictures(tmp_path / "emoji", DataConfig(), seed=0)
    assert [alone.training.record(i).key for i in range(len(alone.training))] == [s.key for s in subjects]
    scenes = open_pictures(tmp_path / "emoji", DataConfig(scenes=20), seed=3).training
    assert isinstance(scenes, SceneSet)
    assert (len(scenes), scenes.seed) == (20, 3)


def test_validation_looks_at_some_all_over_the_set() -> None:
    assert spread(1000, 4) == [0, 250, 500, 750]
    assert spread(3, 64) == [0, 1, 2]
    names = [sample.captions[0] for sample in differently_called(pictures(9), 5)]
    assert len(set(names)) == len(names) == 5


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="held_out"):
        DataConfig(held_out=1)
    with pytest.raises(DataError, match="no samples"):
        split(0, 50)


def test_a_forecast_counts_what_autograd_keeps() -> None:
    """Beside the tensors that a real forward pass keeps, told apart by where they lie in memory."""
    config = toy_config()
    task = ToyTask(config)
    draws = Draws(config.run.seed, 0, range(config.run.batch // config.run.accumulate))
    batch = task.load(draws)
    found = forecast(Plan(task=task, run=config.run, batch=batch))
    module = task.build()
    own = {parameter.data_ptr() for parameter in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        task.loss(module, batch, draws)
    real = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
    assert found.memory.activations == pytest.approx(real, rel=0.1)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert sum(found.parameters.values()) == found.learning == parameters
    assert (found.memory.gradients, found.memory.optimizer) == (4 * parameters, 8 * parameters)
    several = toy_config(ema_decays=(0.5,), ema_sigma_rels=(0.05, 0.1)).run
    assert forecast(Plan(task=task, run=several, batch=batch)).memory.average == 4 * found.memory.weights
    assert found.samples == config.run.steps * config.run.batch
