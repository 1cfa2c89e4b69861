"""From one stage of a recipe to the next: its first weights are the averaged ones of the run it starts from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sfumato.errors import CheckpointError, InvalidConfig, ModelNotFound
from sfumato.toml_files import from_values
from sfumato.train.checkpoints import Checkpoints, Saved
from sfumato.train.task import Task, TaskConfig, first_weights
from sfumato.train.tasks.autoencoder_task import AutoencoderTraining
from sfumato.train.tasks.clip_task import ClipTraining
from sfumato.train.tasks.diffusion_task import DiffusionTraining
from sfumato.train.train_state import averaged_weights
from sfumato.train.trainer import CHECKPOINTS

# What a run's options may be of. No option has a name in all of them but those of the run and the data.
KINDS: Mapping[str, Any] = {
    "autoencoder": AutoencoderTraining,
    "diffusion": DiffusionTraining,
    "clip": ClipTraining,
}


def weights_of_run(folder: Path, decay: float | None = None) -> dict[str, Tensor]:
    """The averaged weights in the newest checkpoint of the run in `folder`: those that are published, or those of one
    of its `ema_decays`. `ModelNotFound` where it has none."""
    return averaged_weights(_newest(folder).tensors, decay)


def _newest(folder: Path) -> Saved:
    saved = Checkpoints(folder / CHECKPOINTS, keep=1).newest()
    if saved is None:
        raise ModelNotFound(f"{folder}: no checkpoint of a training run there; train the stage before first")
    return saved


def first_module(task: Task, weights: Mapping[str, Tensor], seed: int) -> nn.Module:
    """The task's module with `weights`, and random ones (from `seed`) where they have none: a stage may add networks.

    `CheckpointError` where a weight has no place in the module, or another shape there.
    """
    module = first_weights(task, seed)
    own = module.state_dict()
    for name, tensor in sorted(weights.items()):
        if name not in own or own[name].shape != tensor.shape:
            expected = f"{tuple(own[name].shape)} here" if name in own else "none of that name here"
            raise CheckpointError(f"the stage before has {name} of {tuple(tensor.shape)}, and there is {expected}")
    module.load_state_dict({**own, **weights})
    return module


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWeights:
    """What a run has trained so far: its kind and options, the steps done, and its averaged weights."""

    folder: Path
    kind: str
    training: TaskConfig
    step: int
    weights: Mapping[str, Tensor]


def read_run(folder: Path) -> RunWeights:
    """The newest checkpoint of any run of ours; its options tell what it trains.

    `ModelNotFound` where there is none, `InvalidConfig` where the config is none of a task's.
    """
    saved = _newest(folder)
    for kind, config in KINDS.items():
        with contextlib.suppress(InvalidConfig):
            training: TaskConfig = from_values(config, saved.config)
            weights = averaged_weights(saved.tensors)
            return RunWeights(folder=folder, kind=kind, training=training, step=saved.step, weights=weights)
    raise InvalidConfig(f"{folder}: its options are none of {', '.join(KINDS)}: it is a run of another version")
