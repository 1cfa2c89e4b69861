"""Autoencoders for commands: a model's, one by itself, or what a training run has made so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato.files import user_path

if TYPE_CHECKING:
    from sfumato.models.autoencoder import Autoencoder

PUBLISHED = "model"  # within a run's folder


def load_autoencoder(name: str) -> Autoencoder:
    """By a model's name or path, the path of a `vae` folder or file, or the folder of a run of `train autoencoder`:
    what it has published, whose latents are of unit variance, or else its averaged weights so far.

    In float32 on the CPU. Raises `ModelNotFound`, `CheckpointError` or `InvalidConfig`.
    """
    from sfumato.modelfiles.model_library import resolve
    from sfumato.modelfiles.open_model import open_autoencoder
    from sfumato.train.autoencoder_run import autoencoder_of_run
    from sfumato.train.trainer import CONFIG

    path = user_path(name)
    if (path / CONFIG).is_file():
        if not (path / PUBLISHED / "config.json").is_file():
            return autoencoder_of_run(path)
        path = path / PUBLISHED
    with open_autoencoder(path if path.exists() else resolve(name).path) as part:
        return part.load()
