"""A tiny training task: enough network for every kind of parameter, small enough for hundreds of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.sample_order import sample_index
from sfumato.train.run_config import OptimizerConfig, RunConfig
from sfumato.train.task import Batch, ParameterGroup
from sfumato.train.trainer import train


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyTraining:
    run: RunConfig = field(default_factory=RunConfig)


def toy_config(**changes: object) -> ToyTraining:
    """A run that uses warm-up, a falling rate, accumulation, clipping and snapshots of power averages."""
    optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=5, schedule="cosine")
    defaults = {"seed": 3, "steps": 40, "batch": 4, "accumulate": 2, "log_every": 1, "validate_every": 7}
    defaults |= {"ema_sigma_rels": (0.05, 0.1), "snapshot_every": 3}
    return ToyTraining(run=RunConfig(**{"optimizer": optimizer, "checkpoint_minutes": 0.0, **defaults, **changes}))


class ToyTask:
    """Fit a convolution and a linear layer to a fixed random function of each sample, with noise on the input."""

    def __init__(self, config: ToyTraining, size: int = 11) -> None:
        self.config = config
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(size, 3, 8, 8, generator=generator)
        self.targets = torch.randn(size, 5, generator=generator)

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 5))

    def groups(self, module: nn.Module) -> Sequence[ParameterGroup]:
        return [ParameterGroup("all", list(module.parameters()))]

    def load(self, draws: Draws) -> Batch:
        rows = [sample_index(number, len(self.inputs), self.config.run.seed) for number in draws.numbers]
        return {"inputs": self.inputs[rows], "targets": self.targets[rows]}

    def loss(self, module: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        noise = draws.normal("noise", (3, 8, 8)).to(batch["inputs"].device)
        error = F.mse_loss(module(batch["inputs"] + 0.1 * noise), batch["targets"])
        return error, {"noise": noise.mean()}

    @torch.no_grad()
    def validate(self, module: nn.Module, picture: Path) -> Mapping[str, float]:
        device = next(module.parameters()).device
        score = float(F.mse_loss(module(self.inputs.to(device)), self.targets.to(device)))
        return {"score": score}


def run_toy(folder: Path) -> None:
    """The whole run, or what is left of it: for a process that will be killed."""
    torch.set_num_threads(1)
    config = toy_config()
    train(ToyTask(config), config, folder)
