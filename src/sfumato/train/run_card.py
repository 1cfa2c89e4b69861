"""What a run's folder can say in its model's card."""

from __future__ import annotations

import json
from pathlib import Path

from sfumato.train.diffusion import DiffusionTraining
from sfumato.train.export import card_stub
from sfumato.train.trainer import CONFIG

METRICS = "metrics.jsonl"


def last_metrics(run: Path) -> dict[str, float]:
    """The newest number of each name in a run's metrics.jsonl."""
    values: dict[str, float] = {}
    path = run / METRICS
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            values |= json.loads(line)
    return values


def diffusion_card(run: Path, training: DiffusionTraining, step: int) -> str:
    """The beginning of the card of a diffusion model after `step` steps."""
    measured = last_metrics(run)
    text = "learned with it" if training.text_rate else "frozen"
    facts: dict[str, object] = {
        "steps": f"{step:,} of {training.run.steps:,}",
        "samples seen": f"{step * training.run.batch:,}",
        "batch": training.run.batch,
        "latents": f"{training.unet.in_channels}×{training.unet.sample_size}×{training.unet.sample_size}",
        "predicts": training.noise.prediction,
        "text encoder": text,
        "captions left out": f"{training.caption_dropout:.0%}",
        "weights": f"moving average, {training.run.ema_decay:g}",
        "last loss": f"{measured['loss']:.4g}" if "loss" in measured else "not logged",
        "all options": f"`{CONFIG}` of the run",
    }
    return card_stub("A latent diffusion model", facts)
