"""A run that trains an image-text model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sfumato.modelfiles.publish_model import publish_clip
from sfumato.models.clip import Clip, ClipConfig
from sfumato.progress import Cancellation, OnProgress, ignore
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.forecast import NoData, Plan
from sfumato.train.inputs.training_data import differently_called, open_pictures
from sfumato.train.runs.run_weights import RunWeights
from sfumato.train.runs.starting_weights import clip_weights
from sfumato.train.runs.tokenizers import keep_tokenizer, tokenizer_files, tokenizer_folder
from sfumato.train.runs.train_and_publish import Trained, train_and_publish
from sfumato.train.tasks.clip_task import CANDIDATES, ClipTask, ClipTraining


def train_clip(
    config: ClipTraining,
    data: Path,
    folder: Path,
    *,
    tokenizer: str | None = None,
    start: str | None = None,
    device: torch.device | None = None,
    minutes: float | None = None,
    cancellation: Cancellation | None = None,
    on_progress: OnProgress = ignore,
) -> Trained:
    """Train an image-text model on the pictures in `data`, in the run's `folder`, going on where it was stopped.

    `tokenizer` and `start` name models or runs; None for what the run is to find. Raises as `open_pictures`,
    `tokenizer_files`, `clip_weights` and `train` do.
    """
    pictures = open_pictures(data, config.data, config.run.seed)
    held_out = differently_called(pictures.held_out, 2 * CANDIDATES)

    def task_with(words: Tokenizer) -> ClipTask:
        return ClipTask(config, pictures.training, words, held_out)

    words = keep_tokenizer(folder, *tokenizer_files(tokenizer, start, folder), check=task_with)

    def publish(module: nn.Module, model: Path) -> None:
        assert isinstance(module, Clip)
        publish_clip(module, tokenizer_folder(folder), model, overwrite=True)

    return train_and_publish(
        task_with(words),
        config,
        folder,
        start=None if start is None else partial(clip_weights, start),
        publish=publish,
        device=device,
        minutes=minutes,
        cancellation=cancellation,
        on_progress=on_progress,
    )


def plan_clip(config: ClipTraining, run: Path, *, tokenizer: str | None, start: str | None) -> Plan:
    """The task and one micro-batch of pictures (B, 3, H, W) and token windows (B, T), to forecast from.

    It has no wrong captions: how many there are depends on the data's own.
    """
    count, side = config.run.batch // config.run.accumulate, config.vision.image_size
    files, where = tokenizer_files(tokenizer, start, run)
    words = Tokenizer.from_files(files, folder=where)
    task = ClipTask(replace(config, hard_negatives=0.0), NoData(), words)
    tokens = torch.randint(task.tokenizer.eos_id, (count, config.text_encoder.positions))
    batch = {"pictures": torch.randn(count, 3, side, side), "tokens": tokens, "wrong": torch.zeros_like(tokens)}
    return Plan(task=task, run=config.run, batch=batch)


def export_clip(run: RunWeights, folder: Path, *, tokenizer: str | None, dtype: torch.dtype, overwrite: bool) -> None:
    """Write the run's averaged weights as transformers' `CLIPModel`. Raises `ModelNotFound` without a tokenizer, and
    `OutputError` where the folder can't be written."""
    config = run.training
    assert isinstance(config, ClipTraining)
    words = tokenizer_folder(run.folder) if tokenizer is None else Path(tokenizer)
    eos_id = Tokenizer.from_folder(words).eos_id
    module = Clip(ClipConfig(text=config.text_encoder, vision=config.vision, eos_id=eos_id))
    module.load_state_dict(run.weights)
    publish_clip(module.eval(), words, folder, dtype=dtype, overwrite=overwrite)
