"""Autoencoders by name: a model's, one by itself, what a run has trained, or the one that a run keeps."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from sfumato.errors import CheckpointError, InvalidConfig, InvalidRequest
from sfumato.files import locked, make_folder, user_path
from sfumato.modelfiles.model_library import resolve
from sfumato.modelfiles.model_parts import VAE, read_part
from sfumato.modelfiles.open_model import open_autoencoder
from sfumato.modelfiles.publish_model import publish_autoencoder
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.unet_config import UNetConfig
from sfumato.toml_files import read_config
from sfumato.train.encoding.encode_dataset import encoder_hash
from sfumato.train.run_folder import CONFIG, MODEL, PARTS, is_run
from sfumato.train.runs.run_weights import weights_of_run
from sfumato.train.tasks.autoencoder_task import AutoencoderTraining
from sfumato.train.train_state import within


def load_autoencoder(name: str | Path) -> Autoencoder:
    """An autoencoder by a model's name or path, the path of a `vae` folder or file, or the folder of a run that trains
    one: what it has published, whose latents are of unit variance, or else its averaged weights so far.

    In float32 on the CPU, ready to encode. Raises `ModelNotFound`, `CheckpointError` or `InvalidConfig`.
    """
    path = user_path(name)
    if is_run(path):
        if not (path / MODEL / "config.json").is_file():
            return autoencoder_of_run(path)
        path = path / MODEL
    with open_autoencoder(path if path.exists() else resolve(str(name)).path) as part:
        return part.load()


def autoencoder_of_run(folder: Path) -> Autoencoder:
    """A run's averaged weights after the newest checkpoint, without publishing them, in float32, ready to encode.

    `ModelNotFound` where the folder has no checkpoint, `InvalidConfig` where the run trains something else,
    `CheckpointError` where its weights are another autoencoder's.
    """
    autoencoder = Autoencoder(read_config(AutoencoderTraining, folder / CONFIG).model)
    try:
        autoencoder.load_state_dict(within(weights_of_run(folder), "autoencoder."))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: its weights don't fit the autoencoder of its {CONFIG}: {reason}") from error
    return autoencoder.eval().requires_grad_(False)


def autoencoder_for(name: str | None, start: str | None, run: Path) -> Autoencoder:
    """The autoencoder that is named, else the run's own, else that of the model or run it starts from.

    `InvalidRequest` where there is none of them; raises as `load_autoencoder` does.
    """
    if name is not None:
        return load_autoencoder(name)
    kept = kept_autoencoder(run)
    if kept is not None:
        return kept
    if start is None:
        raise InvalidRequest("pictures need an autoencoder: give --autoencoder MODEL, or a run of train autoencoder")
    before = user_path(start)
    earlier = kept_autoencoder(before) if is_run(before) else load_autoencoder(start)
    if earlier is None:
        raise InvalidRequest(f"{start} is no run of the diffusion model: give --autoencoder, too")
    return earlier


def kept_autoencoder(run: Path) -> Autoencoder | None:
    """The autoencoder that a run was begun with, None where it has none yet."""
    folder = run / PARTS / "vae"
    return read_part(folder, VAE) if os.access(folder, os.F_OK) else None


def keep_autoencoder(run: Path, autoencoder: Autoencoder) -> None:
    """Put an autoencoder beside the run. `InvalidConfig` where the run was begun with one of other latents."""
    make_folder(run / PARTS)
    with locked(run / PARTS / ".lock"):  # processes of one run find the parts in turn
        kept = kept_autoencoder(run)
        if kept is None:
            publish_autoencoder(autoencoder, run / PARTS / "vae", dtype=torch.float32)
        elif encoder_hash(kept) != encoder_hash(autoencoder):
            raise InvalidConfig(
                f"{run} was begun with another autoencoder: leave --autoencoder out, or give another --out"
            )


def check_autoencoder(autoencoder: Autoencoder, unet: UNetConfig, scaling_factor: float) -> None:
    """Raise `InvalidConfig` where the UNet's config is for other latents."""
    config = autoencoder.config
    if config.latent_channels != unet.in_channels:
        raise InvalidConfig(
            f"unet.in_channels = {unet.in_channels}, but the autoencoder's latents have {config.latent_channels}"
        )
    if config.scaling_factor != scaling_factor:
        raise InvalidConfig(f"scaling_factor = {scaling_factor} must be the autoencoder's, {config.scaling_factor}")
