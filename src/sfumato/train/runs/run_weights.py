"""The averaged weights that a run has trained so far: to publish, or for another run to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from sfumato.errors import CheckpointError, ModelNotFound
from sfumato.train.checkpoints import Checkpoints, Saved
from sfumato.train.run_folder import CHECKPOINTS
from sfumato.train.task import Task, TaskConfig, first_weights
from sfumato.train.train_state import averaged_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWeights:
    """What a run has trained so far: its kind and options, the steps done, and its averaged weights."""

    folder: Path
    kind: str
    training: TaskConfig
    step: int
    weights: Mapping[str, Tensor]


def weights_of_run(folder: Path, decay: float | None = None) -> dict[str, Tensor]:
    """The averaged weights, of any shape, in the newest checkpoint of the run in `folder`: those that are published, or
    those of one of its `ema_decays`. Raises `ModelNotFound` where it has none."""
    return averaged_weights(newest_of_run(folder).tensors, decay)


def newest_of_run(folder: Path) -> Saved:
    """The newest checkpoint of the run in `folder`. `ModelNotFound` where it has none."""
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
