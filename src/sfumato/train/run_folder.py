"""A training run's folder: every name in it, which stay as they are so that older runs go on.

RUN/config.toml          the run's options, once its first step is done
RUN/metrics.jsonl        its numbers
RUN/sessions.jsonl       how long it was computed, and on what
RUN/checkpoints/         step-00001200.safetensors, or step-00001200/ where weights are sharded
RUN/snapshots/           step-00001200.safetensors: averages, to choose another length from after the run
RUN/validation/          step-00001200.png
RUN/bad-batch-….safetensors
RUN/latents/NAME/        pictures that were encoded for the run
RUN/parts/               vae/ and tokenizer/: what the run was begun with, so that it needs nothing else
RUN/model/               what is published of a run that is finished
RUN/tensorboard/, RUN/wandb-id
"""

from __future__ import annotations

import contextlib
from pathlib import Path

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
SESSIONS = "sessions.jsonl"
CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
VALIDATION = "validation"
LATENTS = "latents"
PARTS = "parts"
MODEL = "model"
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb-id"


def is_run(folder: Path) -> bool:
    """Whether a run was begun in `folder`; none was in one that can't be looked into."""
    with contextlib.suppress(OSError):
        return (folder / CONFIG).is_file()
    return False


def bad_batch(run: Path, step: int, process: int | None) -> Path:
    """The file for the samples of a step that isn't finite; with several processes, those of one."""
    rank = "" if process is None else f"-process-{process}"
    return run / f"bad-batch-{step:08d}{rank}.safetensors"
