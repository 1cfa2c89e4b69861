"""A run that trains an autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.data.samples import spread
from sfumato.modelfiles.publish_model import publish_autoencoder
from sfumato.progress import Cancellation, OnProgress, ignore
from sfumato.train.forecast import NoData, Plan
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.image_tensors import scaled
from sfumato.train.inputs.training_data import MOST_HELD_OUT, open_pictures
from sfumato.train.runs.autoencoders import load_autoencoder
from sfumato.train.runs.run_weights import RunWeights
from sfumato.train.runs.starting_weights import autoencoder_weights
from sfumato.train.runs.train_and_publish import Trained, train_and_publish
from sfumato.train.tasks.autoencoder_task import AutoencoderTask, AutoencoderTraining, TrainedAutoencoder
from sfumato.train.tasks.whitening import channel_statistics, whiten

_WHITENED = 512  # pictures that decide mean and deviation of the latents


def train_autoencoder(
    config: AutoencoderTraining,
    data: Path,
    folder: Path,
    *,
    start: str | None = None,
    device: torch.device | None = None,
    minutes: float | None = None,
    cancellation: Cancellation | None = None,
    on_progress: OnProgress = ignore,
) -> Trained:
    """Train an autoencoder on the pictures in `data`, in the run's `folder`, going on where it was stopped.

    `start` names a model or a run for the first weights. What is published has latents of zero mean and unit variance
    a channel, where the model has `quant_conv`. Raises as `open_pictures`, `autoencoder_weights` and `train` do.
    """
    pictures = open_pictures(data, config.data, config.run.seed)
    held_out = [pictures.held_out.sample(i).picture for i in spread(len(pictures.held_out), MOST_HELD_OUT)]
    task = AutoencoderTask(config, pictures.training, held_out)

    def publish(module: nn.Module, model: Path) -> None:
        assert isinstance(module, TrainedAutoencoder)
        autoencoder = module.autoencoder.cpu()
        if config.model.quant_conv:  # so that the scaling factor makes latents of unit variance, as a UNet wants them
            whiten(autoencoder, channel_statistics(autoencoder, _crops(task, config)))
        publish_autoencoder(autoencoder, model, dtype=torch.float32, overwrite=True)

    return train_and_publish(
        task,
        config,
        folder,
        start=None if start is None else partial(autoencoder_weights, start),
        publish=publish,
        device=device,
        minutes=minutes,
        cancellation=cancellation,
        on_progress=on_progress,
    )


def plan_autoencoder(config: AutoencoderTraining) -> Plan:
    """The task and one micro-batch of squares, (B, 3, crop, crop) of bytes, to forecast from."""
    config = replace(config, run=replace(config.run, resident=False))  # the samples are in the batch
    count = config.run.batch // config.run.accumulate
    pictures = torch.randint(0, 256, (count, 3, config.crop, config.crop), dtype=torch.uint8)
    return Plan(task=AutoencoderTask(config, NoData()), run=config.run, batch={"pictures": pictures})


def export_autoencoder(run: RunWeights, folder: Path, *, dtype: torch.dtype, overwrite: bool) -> None:
    """Write what the run has published, or else its weights so far, as a `vae` folder. Raises `OutputError`."""
    publish_autoencoder(load_autoencoder(run.folder), folder, dtype=dtype, overwrite=overwrite)


def _crops(task: AutoencoderTask, config: AutoencoderTraining) -> Iterator[Tensor]:
    """Pictures as they are trained on, in batches (B, 3, crop, crop) in [-1, 1]."""
    for step in range(-(-_WHITENED // config.run.batch)):
        numbers = range(step * config.run.batch, (step + 1) * config.run.batch)
        yield scaled(task.squares(Draws(config.run.seed, step, numbers)))
