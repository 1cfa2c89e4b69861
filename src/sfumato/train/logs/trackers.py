"""Other places that a run's numbers and pictures go to, beside metrics.jsonl: TensorBoard, Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sfumato.files import write_text
from sfumato.runtime import require
from sfumato.train.run_config import RunConfig
from sfumato.train.run_folder import TENSORBOARD, WANDB_ID


class Tracker(Protocol):
    """Somebody who keeps numbers by step."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def draw(self, step: int, picture: Path) -> None:
        """Keep a PNG file."""
        ...

    def close(self) -> None: ...


def open_trackers(config: RunConfig, folder: Path, values: Mapping[str, Any], *, after: int) -> list[Tracker]:
    """Open the trackers that `config` asks for; steps beyond `after` will come again. `MissingExtra` says what to
    install."""
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(_TensorBoard(folder / TENSORBOARD, after))
    if config.wandb:
        trackers.append(_WeightsAndBiases(config.wandb, folder, values))
    return trackers


class _TensorBoard:
    def __init__(self, folder: Path, after: int) -> None:
        require("tensorboard", extra="train")
        module: Any = require("torch.utils.tensorboard", extra="train")
        self._writer = module.SummaryWriter(str(folder), purge_step=after + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def draw(self, step: int, picture: Path) -> None:
        with Image.open(picture) as image:
            self._writer.add_image("validation", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """One run of Weights & Biases for a folder here: its id is kept in the folder, so that resuming goes on with it."""

    def __init__(self, project: str, folder: Path, values: Mapping[str, Any]) -> None:
        self._wandb: Any = require("wandb", extra="wandb")
        path = folder / WANDB_ID
        if not path.is_file():
            write_text(path, secrets.token_hex(8))
        self._run = self._wandb.init(
            project=project,
            id=path.read_text(encoding="utf-8"),
            name=folder.name,
            dir=str(folder),
            config=dict(values),
            resume="allow",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def draw(self, step: int, picture: Path) -> None:
        self._run.log({"validation": self._wandb.Image(str(picture))}, step=step)

    def close(self) -> None:
        self._run.finish()
