"""Which weights a model is: the SHA-256 of the files it is read from, remembered so that each is hashed once.

A picture's record, `inspect` and a model's card give the same one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sfumato.errors import CheckpointError
from sfumato.modelfiles.hash_cache import file_hash, stamp_of
from sfumato.modelfiles.open_model import ModelFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """A file that a model was read from. `name` is its place in the model, `stamp` its size and time of change then."""

    name: str
    path: Path
    stamp: tuple[int, int]

    @property
    def sha256(self) -> str:
        """Give the SHA-256, remembered. Raises `CheckpointError` where the file isn't what was read any more."""
        if stamp_of(self.path) != self.stamp:
            raise CheckpointError(f"{self.path} has changed since the model was loaded: load it again")
        return file_hash(self.path)


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """The files that the model at `path` was read from, in the order of its parts.

    `last_step` says that the UNet is the last step of a file that has its moving average too.
    """

    path: Path
    weights: tuple[WeightFile, ...]
    last_step: bool

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights that were read: of the file where one file as it is was all, as other programs show.

        Else of one line a file, as `sha256sum` writes them for a folder; files from elsewhere have the name of their
        part, and the last step of a file that has averages adds a line. Raises `CheckpointError` for a file that has
        changed since.
        """
        if not self.last_step and all(file.path == self.path for file in self.weights):
            return self.weights[0].sha256
        lines = [f"{file.sha256}  {file.name}\n" for file in self.weights] + ["last step\n"] * self.last_step
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def identity_of(files: ModelFiles) -> ModelIdentity:
    """Name an open model's files, each once for each part read from it: within the model's folder or, from elsewhere,
    by the part. Raises `CheckpointError` where one is gone."""
    weights = tuple(
        WeightFile(
            name=file.relative_to(files.path).as_posix() if files.path in file.parents else name,
            path=file,
            stamp=stamp_of(file),
        )
        for name, part in files.parts.items()
        for file in part.checkpoint.files
    )
    return ModelIdentity(path=files.path, weights=weights, last_step=files.last_step)
