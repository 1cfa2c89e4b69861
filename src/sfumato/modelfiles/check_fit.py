"""Whether the parts of a model can work together."""

from __future__ import annotations

from sfumato.diffusion.denoiser import PREDICTIONS
from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.errors import InvalidConfig
from sfumato.modelfiles.model_parts import naming
from sfumato.modelfiles.open_model import ModelFiles, read_tokenizer
from sfumato.prompt.tokenizer import Tokenizer


def check_fit(files: ModelFiles) -> tuple[Tokenizer, NoiseSchedule]:
    """Read a model's tokenizer and noise schedule. Raises `InvalidConfig` if they or the parts can't work together."""
    with naming(files.path):
        noise_schedule = NoiseSchedule.from_config(files.scheduler)
    tokenizer = read_tokenizer(files)
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
    prediction = files.scheduler.get("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise InvalidConfig(f"{files.path}: prediction_type {str(prediction)[:80]!r} is not supported")
    if tokenizer.max_length > text.positions:
        raise InvalidConfig(
            f"{files.path}: its tokenizer makes windows of {tokenizer.max_length} tokens (model_max_length), its text "
            f"encoder takes {text.positions}"
        )
    largest = max(tokenizer.backend.get_vocab().values())
    if largest >= text.vocab_size:
        raise InvalidConfig(
            f"{files.path}: its tokenizer has ids up to {largest}, its text encoder knows {text.vocab_size} tokens"
        )
    return tokenizer, noise_schedule
