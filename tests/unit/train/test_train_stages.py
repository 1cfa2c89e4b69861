"""A stage begins with the averaged weights of the one before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.errors import CheckpointError, ModelNotFound
from sfumato.train.runs.run_weights import first_module, weights_of_run
from sfumato.train.trainer import train
from support.train_toy import ToyTask, toy_config


class Wider(ToyTask):
    """The toy with a further layer."""

    def build(self) -> nn.Module:
        module = super().build()
        assert isinstance(module, nn.Sequential)
        return module.append(nn.Linear(5, 5))


class Other(ToyTask):
    def build(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3))


def test_the_average_is_handed_on_and_new_parts_are_seeded(tmp_path: Path) -> None:
    config = toy_config(steps=5)
    average = train(ToyTask(config), config, tmp_path).state.ema.module.state_dict()
    weights = weights_of_run(tmp_path)
    assert weights.keys() == average.keys()
    modules = [first_module(Wider(config), weights, seed) for seed in (1, 1, 2)]
    for name, tensor in average.items():
        assert all(torch.equal(module.state_dict()[name], tensor) for module in modules)
    new = [module.state_dict()["5.weight"] for module in modules]
    assert torch.equal(new[0], new[1])
    assert not torch.equal(new[0], new[2])


def test_weights_without_a_place_are_named(tmp_path: Path) -> None:
    config = toy_config(steps=2)
    with pytest.raises(ModelNotFound, match="stage before"):
        weights_of_run(tmp_path)
    train(ToyTask(config), config, tmp_path)
    with pytest.raises(CheckpointError, match=r"0\.bias of \(4,\), and there is \(8,\) here"):
        first_module(Other(config), weights_of_run(tmp_path), 0)
