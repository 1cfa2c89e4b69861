"""Checkpoints of a run: whole or absent, checked when read, written beside the training.

    FOLDER/step-00001200.safetensors     everything after 1,200 steps; the metadata say of what
    FOLDER/step-00001200/                the same in parts, of a run whose weights are sharded

`kill -9` at any moment leaves whole files only: each is written under another name, synced, and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.files import remove_leftovers
from sfumato.train.distributed.process_group import World
from sfumato.train.distributed.sharded_checkpoint import read_description, read_shards, write_shards
from sfumato.train.run_folder import CHECKPOINTS
from sfumato.train.single_threaded_pool import single_threaded_pool
from sfumato.weights.checkpoint import open_checkpoint
from sfumato.weights.mapped_file import TensorInfo
from sfumato.weights.save import write_safetensors

logger = logging.getLogger("sfumato")

_KEY = "sfumato.train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint read back. `score` is the last validation's (lower is better), None before the first."""

    path: Path
    step: int
    config: Mapping[str, Any]
    score: float | None
    tensors: Mapping[str, Tensor]


def is_begun(run: Path) -> bool:
    """Whether the run in the folder has a checkpoint, whole or not; none where it can't be looked into."""
    with contextlib.suppress(OSError):
        return Checkpoints(run / CHECKPOINTS, keep=1).any()
    return False


class Checkpoints:
    """The checkpoints in a folder: the `keep` newest, and the one with the best score."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._writer: ThreadPoolExecutor | None = None  # begun by the first `save`: most callers only look
        self._pending: Future[None] | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], config: Mapping[str, Any], score: float | None) -> None:
        """Write `tensors` of any shape, which must not change any more, in the background. The `OutputError` of an
        earlier write is raised here."""
        self.wait()
        if self._writer is None:
            self._writer = single_threaded_pool(1, "checkpoint")
        self._pending = self._writer.submit(self._write, step, dict(tensors), dict(config), score)

    def wait(self) -> None:
        """Wait until the last `save` is on the disk; raises its `OutputError`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last `save`, and end the writing thread."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()

    def any(self) -> bool:
        """Whether there is a checkpoint, whole or not."""
        return bool(self._paths())

    def newest(self) -> Saved | None:
        """The newest checkpoint that is whole; damaged ones are passed over with a warning. None without one."""
        for path in reversed(self._paths()):
            try:
                return read_checkpoint(path)
            except CheckpointError as error:
                logger.warning("%s; going back to the checkpoint before it", error)
        return None

    def _write(self, step: int, tensors: dict[str, Tensor], config: dict[str, Any], score: float | None) -> None:
        write_checkpoint(self.folder, step=step, tensors=tensors, config=config, score=score)
        self._prune()

    def save_parts(
        self, step: int, tensors: Mapping[str, Tensor], config: Mapping[str, Any], score: float | None, world: World
    ) -> None:
        """Write tensors of any shape, sharded among `world`, whose processes must all call this, and wait for it."""
        self.wait()
        described = {"step": step, "config": dict(config), "score": score}
        write_shards(self.folder / f"step-{step:08d}", tensors, described, world)
        if world.is_main:
            self._prune()

    def _prune(self) -> None:
        paths = self._paths()
        scores = {path: score for path in paths if (score := _score(path)) is not None}
        best = min(scores, key=scores.__getitem__, default=None)
        for path in paths[: -self.keep]:
            if path != best:
                _remove(path)
        remove_leftovers(self.folder)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix == ".safetensors" or path.is_dir())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_checkpoint(
    folder: Path, *, step: int, tensors: Mapping[str, Tensor], config: Mapping[str, Any], score: float | None
) -> None:
    """Write the step's checkpoint into `folder`, whole or not at all; `read_checkpoint` reads it back. `tensors`, of
    any shape, are on the CPU.

    Raises `OutputError`.
    """
    description = {"step": step, "config": dict(config), "score": score, "sha256": tensors_digest(tensors)}
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(
        folder / f"step-{step:08d}.safetensors",
        {name: TensorInfo(dtype=tensor.dtype, shape=tuple(tensor.shape)) for name, tensor in tensors.items()},
        tensors.__getitem__,
        metadata={_KEY: json.dumps(description)},
        overwrite=True,
    )


def read_checkpoint(path: Path) -> Saved:
    """Read and check one checkpoint. `CheckpointError` where it is damaged or none of ours."""
    if path.is_dir():
        described = read_description(path)
        tensors = read_shards(path, described.pop("sha256"))
        return Saved(path=path, tensors=tensors, **described)
    with open_checkpoint(path) as checkpoint:
        try:
            described = json.loads(checkpoint.metadata[_KEY])
            step, config, score, digest = (described[name] for name in ("step", "config", "score", "sha256"))
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: not a checkpoint of a training run") from error
        tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    if tensors_digest(tensors) != digest:
        raise CheckpointError(f"{path}: damaged: its numbers don't have the checksum they were written with")
    return Saved(path=path, step=step, config=config, score=score, tensors=tensors)


def _score(path: Path) -> float | None:
    """The score in a checkpoint's header; None too where the file is damaged, which `newest` will say."""
    try:
        if path.is_dir():
            found: float | None = read_description(path)["score"]
            return found
        with open_checkpoint(path) as checkpoint:
            score: float | None = json.loads(checkpoint.metadata[_KEY])["score"]
    except (CheckpointError, KeyError, ValueError):
        return None
    return score


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors on the CPU: their names, dtypes, shapes and numbers."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
