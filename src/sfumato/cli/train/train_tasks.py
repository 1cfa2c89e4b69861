"""The training commands' work: data and parts found, task made, run conducted, model published."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sfumato.cli.models.autoencoders import PUBLISHED
from sfumato.cli.train.train_parts import (
    autoencoder_for,
    autoencoder_weights,
    clip_weights,
    diffusion_weights,
    text_encoder_weights,
    tokenizer_files,
    write_card_of_run,
)
from sfumato.cli.train.train_progress import training_progress
from sfumato.cli.train.train_run import conduct
from sfumato.errors import InvalidConfig
from sfumato.modelfiles.publish_model import publish_autoencoder, publish_clip
from sfumato.models.clip import Clip
from sfumato.progress import Cancellation
from sfumato.runtime import resolve_device
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.image_tensors import scaled
from sfumato.train.inputs.latent_sources import Latents, check_shape, encoded_before, encoded_now, is_encoded
from sfumato.train.inputs.training_data import differently_called, open_pictures, spread
from sfumato.train.publish_diffusion import publish_diffusion
from sfumato.train.run_folder import check_autoencoder, keep_autoencoder, keep_tokenizer, tokenizer_folder
from sfumato.train.tasks.autoencoder_task import AutoencoderTask, AutoencoderTraining, TrainedAutoencoder
from sfumato.train.tasks.clip_task import CANDIDATES, ClipTask, ClipTraining
from sfumato.train.tasks.diffusion_task import DiffusionTask, DiffusionTraining, LatentDiffusion, Validation
from sfumato.train.tasks.whitening import channel_statistics, whiten
from sfumato.train.trainer import stopping_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from sfumato.cli.train.train_options import RunOptions
    from sfumato.models.autoencoder import Autoencoder

logger = logging.getLogger("sfumato")

_WHITENED = 512  # pictures that decide mean and deviation of the latents
_KNOWN = "there are too few pictures to keep any from training: validation looks at those that are trained on"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionParts:
    """What a run of the diffusion model is begun with, by names of models or runs; None for what it is to find."""

    autoencoder: str | None
    text_encoder: str | None
    tokenizer: str | None
    start: str | None


def prepare(options: RunOptions) -> Cancellation:
    """Threads as asked, and the flag that Ctrl-C sets."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return Cancellation()


def train_autoencoder(training: AutoencoderTraining, data: Path, options: RunOptions, start: str | None) -> None:
    """Raises as `open_pictures` and `train` do."""
    cancellation = prepare(options)
    pictures = open_pictures(data, training.data, training.run.seed)
    if pictures.known:
        logger.warning(_KNOWN)
    held_out = [pictures.held_out.sample(i).picture for i in spread(len(pictures.held_out))]

    task = AutoencoderTask(training, pictures.training, held_out)

    def publish(module: nn.Module) -> Path:
        assert isinstance(module, TrainedAutoencoder)
        autoencoder = module.autoencoder.cpu()
        if training.model.quant_conv:  # so that the scaling factor makes latents of unit variance, as a UNet wants them
            whiten(autoencoder, channel_statistics(autoencoder, _crops(task, training)))
        publish_autoencoder(autoencoder, options.out / PUBLISHED, dtype=torch.float32, overwrite=True)
        return options.out / PUBLISHED

    with stopping_on_signals(cancellation):
        conduct(
            task,
            training,
            options,
            cancellation,
            again=options.again("autoencoder"),
            start=None if start is None else lambda: autoencoder_weights(start),
            publish=publish,
        )


def train_diffusion(training: DiffusionTraining, data: Path, options: RunOptions, parts: DiffusionParts) -> None:
    """Raises as `encode_moments` and `train` do, `InvalidConfig` for parts that don't fit each other."""
    cancellation = prepare(options)
    if not training.text_rate and parts.text_encoder is None and parts.start is None and not _begun(options.out):
        raise InvalidConfig(
            "text_rate = 0 freezes a text encoder that knows no words yet: give --text-encoder or --start, or let it "
            "learn with text_rate above 0"
        )
    autoencoder = autoencoder_for(parts.autoencoder, parts.start, options.out)
    check_autoencoder(autoencoder, training.unet, training.scaling_factor)
    tokenizer = keep_tokenizer(options.out, *tokenizer_files(parts.tokenizer, parts.start, options.out))
    _check_tokenizer(tokenizer.vocab_size, tokenizer.max_length, training)
    keep_autoencoder(options.out, autoencoder)
    with stopping_on_signals(cancellation):
        latents = _latents(training, data, options, autoencoder, cancellation)
        check_shape(latents.held_out, training.unet.in_channels, training.unet.sample_size)
        if latents.known:
            logger.warning(_KNOWN)
        device = resolve_device(options.device)

        def decode(z: Tensor) -> Tensor:
            return autoencoder.to(z.device).decode(z)

        def publish(module: nn.Module) -> Path:
            assert isinstance(module, LatentDiffusion)
            publish_diffusion(
                module,
                training,
                autoencoder.cpu(),
                tokenizer_folder(options.out),
                options.out / PUBLISHED,
                overwrite=True,
            )
            write_card_of_run(options.out, options.out / PUBLISHED)
            return options.out / PUBLISHED

        autoencoder.to(device)
        conduct(
            DiffusionTask(
                training,
                latents.training,
                tokenizer,
                Validation(samples=latents.held_out, prompts=training.prompts, decode=decode),
            ),
            training,
            options,
            cancellation,
            again=options.again("diffusion"),
            start=_first_weights(parts),
            publish=publish,
        )


def train_clip(
    training: ClipTraining, data: Path, options: RunOptions, tokenizer: str | None, start: str | None
) -> None:
    """Raises as `open_pictures` and `train` do."""
    cancellation = prepare(options)
    pictures = open_pictures(data, training.data, training.run.seed)
    if pictures.known:
        logger.warning(_KNOWN)
    held_out = differently_called(pictures.held_out, 2 * CANDIDATES)
    read = keep_tokenizer(options.out, *tokenizer_files(tokenizer, start, options.out))

    def publish(module: nn.Module) -> Path:
        assert isinstance(module, Clip)
        publish_clip(module, tokenizer_folder(options.out), options.out / PUBLISHED, overwrite=True)
        return options.out / PUBLISHED

    with stopping_on_signals(cancellation):
        conduct(
            ClipTask(training, pictures.training, read, held_out),
            training,
            options,
            cancellation,
            again=options.again("clip"),
            start=None if start is None else lambda: clip_weights(start),
            publish=publish,
        )


def _crops(task: AutoencoderTask, training: AutoencoderTraining) -> Iterator[Tensor]:
    """Pictures as they are trained on, in batches."""
    for step in range(-(-_WHITENED // training.run.batch)):
        numbers = range(step * training.run.batch, (step + 1) * training.run.batch)
        yield scaled(task.squares(Draws(training.run.seed, step, numbers)))


def _first_weights(parts: DiffusionParts) -> Callable[[], Mapping[str, Tensor]] | None:
    start, text_encoder = parts.start, parts.text_encoder
    if start is None and text_encoder is None:
        return None
    return lambda: {
        **(diffusion_weights(start) if start else {}),
        **(text_encoder_weights(text_encoder) if text_encoder else {}),
    }


def _latents(
    training: DiffusionTraining,
    data: Path,
    options: RunOptions,
    autoencoder: Autoencoder,
    cancellation: Cancellation,
) -> Latents:
    if is_encoded(data):
        if training.buckets:
            raise InvalidConfig(f"{data} holds latents of one shape: give pictures, or set buckets to false")
        return encoded_before(data, training.data, autoencoder)
    with training_progress() as on_progress:
        return encoded_now(
            data,
            training.data,
            autoencoder.to(resolve_device(options.device)),
            options.out,
            side=training.unet.sample_size * autoencoder.config.factor,
            multiple=_multiple(training, autoencoder) if training.buckets else None,
            seed=training.run.seed,
            on_progress=on_progress,
            cancellation=cancellation,
        )


def _multiple(training: DiffusionTraining, autoencoder: Autoencoder) -> int:
    """Pixels that a picture's sides must be multiples of, for every level of autoencoder and UNet to halve them."""
    return int(autoencoder.config.factor * 2 ** (len(training.unet.block_channels) - 1))


def _check_tokenizer(vocabulary: int, window: int, training: DiffusionTraining) -> None:
    text = training.text_encoder
    if vocabulary > text.vocab_size or window > text.positions:
        raise InvalidConfig(
            f"text_encoder.vocab_size = {text.vocab_size} and positions = {text.positions}, but the tokenizer has "
            f"{vocabulary} tokens and windows of {window}: set them so, or give another with --tokenizer"
        )


def _begun(run: Path) -> bool:
    from sfumato.train.checkpoints import Checkpoints
    from sfumato.train.trainer import CHECKPOINTS

    return Checkpoints(run / CHECKPOINTS, keep=1).any()
