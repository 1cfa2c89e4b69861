"""What a run of the diffusion model needs to be whole: its autoencoder and tokenizer, kept beside its checkpoints.

    RUN/parts/vae/          diffusers' layout, in float32
    RUN/parts/tokenizer/

So a run is published, and goes on, without anything that it was begun with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from sfumato.errors import InvalidConfig, ModelNotFound
from sfumato.files import atomic_folder, locked, make_folder
from sfumato.modelfiles.model_parts import VAE, read_part
from sfumato.modelfiles.publish_model import publish_autoencoder, write_tokenizer
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.unet_config import UNetConfig
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.encoding.encode_dataset import encoder_hash

_PARTS, _LOCK = "parts", ".lock"  # processes of one run find these parts in turn


def kept_autoencoder(run: Path) -> Autoencoder | None:
    """The autoencoder that a run was begun with, None where it has none yet."""
    folder = run / _PARTS / "vae"
    if not folder.is_dir():
        return None
    return read_part(folder, VAE)


def keep_autoencoder(run: Path, autoencoder: Autoencoder) -> None:
    """Put it beside the run. `InvalidConfig` where the run was begun with one of other latents."""
    make_folder(run / _PARTS)
    with locked(run / _PARTS / _LOCK):
        kept = kept_autoencoder(run)
        if kept is None:
            publish_autoencoder(autoencoder, run / _PARTS / "vae", dtype=torch.float32)
        elif encoder_hash(kept) != encoder_hash(autoencoder):
            raise InvalidConfig(
                f"{run} was begun with another autoencoder: leave --autoencoder out, or give another --out"
            )


def tokenizer_folder(run: Path) -> Path:
    """Where a run keeps its tokenizer. `ModelNotFound` where it has none."""
    folder = run / _PARTS / "tokenizer"
    if not folder.is_dir():
        raise ModelNotFound(f"{run} holds no tokenizer: it is no run of train diffusion or clip")
    return folder


def keep_tokenizer(run: Path, files: Mapping[str, str], where: Path) -> Tokenizer:
    """Put a tokenizer's files beside the run, and read it. `InvalidConfig` where the run was begun with another."""
    tokenizer = Tokenizer.from_files(files, folder=where)
    folder = run / _PARTS / "tokenizer"
    make_folder(folder.parent)
    with locked(folder.parent / _LOCK):
        if not folder.is_dir():
            with atomic_folder(folder) as temporary:
                write_tokenizer(files, temporary)
    kept = Tokenizer.from_folder(folder)
    if kept.backend.to_str() != tokenizer.backend.to_str():
        raise InvalidConfig(f"{run} was begun with another tokenizer: leave --tokenizer out, or give another --out")
    return kept


def check_autoencoder(autoencoder: Autoencoder, unet: UNetConfig, scaling_factor: float) -> None:
    """`InvalidConfig` where the UNet's config is for other latents."""
    config = autoencoder.config
    if config.latent_channels != unet.in_channels:
        raise InvalidConfig(
            f"unet.in_channels = {unet.in_channels}, but the autoencoder's latents have {config.latent_channels}"
        )
    if config.scaling_factor != scaling_factor:
        raise InvalidConfig(f"scaling_factor = {scaling_factor} must be the autoencoder's, {config.scaling_factor}")
