"""Checkpoints in parts, one a process, by torch.distributed.checkpoint: for weights that no process has whole.

    step-00001200/shard-00001-….safetensors     what the first process has, with its place in the whole
    step-00001200/state.json                    step, config, score, and the checksum of each part

The parts are safetensors, so nothing in them is ever run. The folder appears whole or not at all, and is read by any
number of processes, or by one.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import CheckpointError, OutputError, SfumatoError
from sfumato.files import file_sha256, write_text
from sfumato.json_files import read_object
from sfumato.train.distributed.process_group import World

STATE = "state.json"


def write_shards(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any], world: World) -> None:
    """Write `tensors` of any shape, of which each process has its part, to the folder `path`. All must call it.

    Raises `OutputError` in the first process that couldn't write its part, `PeerFailed` in the others.
    """
    temporary = world.broadcast(path.with_name(f".{path.name}.{secrets.token_hex(6)}.part"))

    def write_part() -> dict[str, str]:
        with _as_output_error(path):
            temporary.mkdir(parents=True, exist_ok=True)
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True))
            own = temporary.glob(f"shard-{world.rank + 1:05d}-*")
            return {part.name: file_sha256(part) for part in own}

    def publish() -> None:
        if world.is_main:
            with _as_output_error(path):
                write_text(temporary / STATE, json.dumps({**description, "sha256": sums}, indent=1) + "\n")
                shutil.rmtree(path, ignore_errors=True)  # a damaged one of the same step
                temporary.rename(path)

    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        sums = {
            name: digest for part in world.all_gather(world.all_or_fail(write_part)) for name, digest in part.items()
        }
        world.all_or_fail(publish)
    finally:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path}: could not be written: {error.strerror or error}") from error
    except CheckpointException as error:
        reason = " ".join(str(cause) for cause, _ in error.failures.values())
        raise OutputError(f"{path}: could not be written: {' '.join(reason.split())[:300]}") from error


def read_description(path: Path) -> dict[str, Any]:
    """What state.json in the folder says. `CheckpointError` where it is damaged or missing."""
    try:
        described = read_object(path / STATE)
        return {name: described[name] for name in ("step", "config", "score", "sha256")}
    except (SfumatoError, KeyError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of a training run") from error


def read_shards(path: Path, parts: Mapping[str, str]) -> dict[str, Tensor]:
    """The whole tensors, of any shape, on the CPU, from files of the given checksums. Raises `CheckpointError` where
    they have others."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    for name in sorted({*parts, *(file.name for file in path.glob("*.safetensors"))}):
        file = path / Path(name).name
        if not file.is_file() or file_sha256(file) != parts.get(name):
            raise CheckpointError(f"{file}: damaged: it doesn't have the checksum it was written with")
    reader = HuggingFaceStorageReader(str(path))
    infos = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {
        name: torch.empty(info.size, dtype=info.properties.dtype)  # type: ignore[union-attr]
        for name, info in infos.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what is meant
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors
