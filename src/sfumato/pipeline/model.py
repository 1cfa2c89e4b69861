"""`Model`: the networks, tokenizer and noise schedule of one model, ready to run on one device."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from sfumato.diffusion.denoiser import PREDICTIONS
from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.errors import InvalidConfig
from sfumato.files import write_text
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.clip_text import ClipText
from sfumato.models.unet import UNet
from sfumato.pipeline.model_files import LayoutName, ModelFiles, open_model
from sfumato.progress import OnProgress, Progress, ignore
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.weights.mapper import fill
from sfumato.weights.registry import model_hash


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a pipeline runs. `prediction` is what the UNet answers: "epsilon", "v_prediction" or "sample"."""

    name: str
    path: Path
    layout: LayoutName
    vae_path: Path | None
    unet: UNet = field(repr=False)
    autoencoder: Autoencoder = field(repr=False)
    text_encoder: ClipText = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    noise_schedule: NoiseSchedule = field(repr=False)
    prediction: str
    safety_checker: Path | None
    requires_safety_checker: bool
    device: torch.device
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Side in pixels of the pictures it was trained on."""
        return self.unet.config.sample_size * self.autoencoder.config.factor

    @property
    def inpaints(self) -> bool:
        """Whether its UNet takes a mask and the masked picture beside the latents (9 channels in v1)."""
        return self.unet.config.in_channels > self.autoencoder.config.latent_channels

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights, read once for each file and remembered across runs; with another VAE, of both."""
        own = model_hash(self.path)
        if self.vae_path is None:
            return own
        return hashlib.sha256(f"{own} {model_hash(self.vae_path)}".encode()).hexdigest()


def load_model(
    path: Path,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    vae: Path | None = None,
    ema: bool = True,
    variant: str | None = None,
    on_progress: OnProgress = ignore,
) -> Model:
    """Read a model in either layout onto a device, tensor by tensor from the memory map.

    Raises as `open_model` does, and `InvalidConfig` for parts that don't fit each other.
    """
    with open_model(path, vae=vae, ema=ema, variant=variant) as files:
        check_fit(files)
        for step, part in enumerate(files.parts.values()):
            on_progress(Progress(stage="load", step=step, steps=len(files.parts)))
            fill(part.module, part.entries, part.checkpoint, dtype=dtype, device=device)
        on_progress(Progress(stage="load", step=len(files.parts), steps=len(files.parts)))
        return Model(
            name=name,
            path=path,
            layout=files.layout,
            vae_path=vae,
            unet=files.unet.module,
            autoencoder=files.vae.module,
            text_encoder=files.text_encoder.module,
            tokenizer=tokenizer_from(files.tokenizer),
            noise_schedule=NoiseSchedule.from_config(files.scheduler),
            prediction=files.scheduler.get("prediction_type", "epsilon"),
            safety_checker=files.safety_checker,
            requires_safety_checker=files.requires_safety_checker,
            device=device,
            dtype=dtype,
        )


def tokenizer_from(files: Mapping[str, str]) -> Tokenizer:
    """A tokenizer from its files' contents by name (a single file carries them in its metadata)."""
    with tempfile.TemporaryDirectory(prefix="sfumato-") as folder:
        for name, text in files.items():
            write_text(Path(folder) / name, text)
        return Tokenizer.from_folder(folder)


def check_fit(files: ModelFiles) -> None:
    """Raise `InvalidConfig` if the parts can't work together."""
    unet, vae, text = files.unet.module.config, files.vae.module.config, files.text_encoder.module.config
    if unet.context_dim != text.width:
        raise InvalidConfig(
            f"{files.path}: its UNet expects contexts of {unet.context_dim}, its text encoder gives {text.width}"
        )
    if unet.in_channels not in (vae.latent_channels, 2 * vae.latent_channels + 1):
        raise InvalidConfig(
            f"{files.path}: its UNet takes {unet.in_channels} channels, its autoencoder gives {vae.latent_channels}"
        )
    if unet.out_channels != vae.latent_channels:
        raise InvalidConfig(
            f"{files.path}: its UNet answers with {unet.out_channels} channels: variances are unsupported"
        )
    if files.scheduler.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise InvalidConfig(f"{files.path}: prediction_type {files.scheduler['prediction_type']!r} is not supported")
