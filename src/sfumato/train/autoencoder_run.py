"""The autoencoder that a training run made, without publishing it first."""

from __future__ import annotations

from pathlib import Path

from sfumato.errors import CheckpointError
from sfumato.models.autoencoder import Autoencoder
from sfumato.toml_files import read_config
from sfumato.train.stages import weights_of_run
from sfumato.train.tasks.autoencoder_task import AutoencoderTraining
from sfumato.train.trainer import CONFIG

_PREFIX = "autoencoder."


def autoencoder_of_run(folder: Path) -> Autoencoder:
    """Its averaged weights after the newest checkpoint, in float32, ready to encode.

    `ModelNotFound` where the folder has no checkpoint, `InvalidConfig` where the run trains something else,
    `CheckpointError` where its weights are another autoencoder's.
    """
    autoencoder = Autoencoder(read_config(AutoencoderTraining, folder / CONFIG).model)
    weights = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in weights_of_run(folder).items()
        if name.startswith(_PREFIX)
    }
    try:
        autoencoder.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: its weights don't fit the autoencoder of its {CONFIG}: {reason}") from error
    return autoencoder.eval().requires_grad_(False)
