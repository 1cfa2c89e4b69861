"""What a model's own files say: parts, parameters, shapes, hashes. Read for a card, never assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.modelfiles.hash_cache import file_hash
from sfumato.modelfiles.identity import identity_of
from sfumato.modelfiles.model_parts import Part
from sfumato.modelfiles.open_model import ModelFiles, open_model
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.unet_config import UNetConfig

_LONGEST = 40  # characters of a word in a config


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTraits:
    """One network: how many parameters, how they are stored, and its shape in words."""

    name: str
    parameters: int
    dtypes: tuple[str, ...]
    shape: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTraits:
    """A model as its files are. `size` is the pixels of a side; `files` has the SHA-256 of each weight file that
    is read, by name; `sha256` is what pictures made with these say (`Model.sha256`)."""

    layout: str
    size: int
    factor: int
    latent_channels: int
    positions: int
    prediction: str
    schedule: str
    inpainting: bool
    v1_shaped: bool
    safety_checker: bool
    ema: bool
    parts: tuple[PartTraits, ...]
    files: Mapping[str, str]
    sha256: str

    @property
    def parameters(self) -> int:
        """The number of parameters of all parts."""
        return sum(part.parameters for part in self.parts)


def read_traits(path: Path) -> ModelTraits:
    """Open the model at `path` and hash the weights that are read. Raises as `open_model` does."""
    with open_model(path) as files:
        identity = identity_of(files)
        unet, vae, text = files.unet.module.config, files.vae.module.config, files.text_encoder.module.config
        return ModelTraits(
            layout=files.layout,
            size=unet.sample_size * vae.factor,
            factor=vae.factor,
            latent_channels=vae.latent_channels,
            positions=text.positions,
            prediction=_word(files.scheduler.get("prediction_type", "epsilon")),
            schedule=_schedule(files.scheduler),
            inpainting=unet.in_channels > vae.latent_channels,
            v1_shaped=unet == UNetConfig() and vae == AutoencoderConfig() and text == ClipTextConfig(),
            safety_checker=files.safety_checker is not None,
            ema=files.ema,
            parts=_parts(files),
            files={
                path.name if file == path else name: file_hash(file, fresh=True)
                for file, name in {file.path: file.name for file in identity.weights}.items()
            },
            sha256=identity.sha256,
        )


def _parts(files: ModelFiles) -> tuple[PartTraits, ...]:
    shapes = {
        "text_encoder": _text_shape(files.text_encoder.module.config),
        "unet": _unet_shape(files.unet.module.config),
        "vae": _vae_shape(files.vae.module.config),
    }
    return tuple(_part(name, part, shapes[name]) for name, part in files.parts.items())


def _part(name: str, part: Part[Any], shape: str) -> PartTraits:
    return PartTraits(name=name, parameters=part.parameters, dtypes=tuple(sorted(part.dtypes)), shape=shape)


def _text_shape(config: ClipTextConfig) -> str:
    return (
        f"CLIP text encoder: {config.layers} layers, width {config.width}, {config.heads} heads, "
        f"{config.positions} positions, vocabulary {config.vocab_size:,}"
    )


def _unet_shape(config: UNetConfig) -> str:
    attended = sum(config.attention)
    return (
        f"UNet: channels {_listed(config.block_channels)}, blocks a level {config.layers_per_block}, "
        f"cross-attention on {attended} of {len(config.attention)} levels, heads {_listed(config.heads)}, "
        f"context {config.context_dim}, {config.norm_groups} norm groups"
    )


def _vae_shape(config: AutoencoderConfig) -> str:
    return (
        f"KL autoencoder: channels {_listed(config.block_channels)}, blocks a level {config.layers_per_block}, "
        f"factor {config.factor}, {config.latent_channels} latent channels, scaling {config.scaling_factor:g}, "
        f"{config.norm_groups} norm groups"
    )


def _listed(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def _schedule(scheduler: Mapping[str, Any]) -> str:
    """The noise schedule in words; empty where the file leaves any of it open."""
    steps, kind = scheduler.get("num_train_timesteps"), scheduler.get("beta_schedule")
    start, end = scheduler.get("beta_start"), scheduler.get("beta_end")
    if not all(isinstance(number, int | float) for number in (steps, start, end)) or not isinstance(kind, str):
        return ""
    return f"{steps} steps, β {_word(kind)} from {start:g} to {end:g}"


def _word(value: Any) -> str:
    """What a config says in a word, with nothing in it that a card can't show."""
    return "".join(letter for letter in str(value) if letter.isprintable())[:_LONGEST]
