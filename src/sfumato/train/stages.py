"""From one stage of a recipe to the next: its first weights are the averaged ones of the run it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from sfumato.errors import CheckpointError, ModelNotFound
from sfumato.train.checkpoints import Checkpoints
from sfumato.train.state import averaged_weights
from sfumato.train.trainer import CHECKPOINTS, Task, first_weights


def weights_of_run(folder: Path) -> dict[str, Tensor]:
    """The averaged weights in the newest checkpoint of the run in `folder`. `ModelNotFound` where it has none."""
    saved = Checkpoints(folder / CHECKPOINTS, keep=1).newest()
    if saved is None:
        raise ModelNotFound(f"{folder}: no checkpoint of a training run there; train the stage before first")
    return averaged_weights(saved.tensors)


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
