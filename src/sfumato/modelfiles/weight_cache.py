"""A model's weights once more, as a run needs them: mapped from the user's cache, not converted while they are read.

A part of a file whose tensors don't lie on 64 bytes, or in another dtype than it runs in, is copied when it is loaded.
`warm` writes it once, in the run's dtype and as torch lays it out; loading finds it by the SHA-256 of the files it came
from. Nobody's disk is filled unasked: only `warm` writes. An entry that isn't what its key says is left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import CheckpointError
from sfumato.files import make_folder
from sfumato.modelfiles.hash_cache import file_hash, remembered_hash
from sfumato.modelfiles.model_parts import Part
from sfumato.modelfiles.open_model import ModelFiles, open_model
from sfumato.runtime import dtype_name, logger
from sfumato.user_cache import cache_folder
from sfumato.weights.checkpoint import Checkpoint, open_checkpoint
from sfumato.weights.mapped_file import TensorInfo
from sfumato.weights.mapper import Entry
from sfumato.weights.save import write_safetensors

_VERSION = 1
_KEY, _FROM = "sfumato.warm", "sfumato.warm.from"
_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmPart:
    """An entry of the cache: which part it is, of which model, and its size in bytes."""

    path: Path
    part: str
    source: str
    bytes: int


def warm_folder() -> Path:
    """The folder of the cache's entries."""
    return cache_folder() / "warm"


def warm(path: Path, *, dtype: torch.dtype, vae: Path | None = None, ema: bool = True) -> list[WarmPart]:
    """Write what loading this model in this dtype would copy; the entries it then has, old and new.

    Reads its files whole, for their hashes. Raises as `open_model` does, and `OutputError`.
    """
    found = []
    with open_model(path, vae=vae, ema=ema) as files:
        for name, part in files.parts.items():
            if not is_copied(part, dtype):
                continue
            entry = warm_folder() / f"{name}-{_key(files, name, part, dtype, fresh=True)[:32]}{_SUFFIX}"
            if not entry.is_file():
                _write(entry, part, dtype, {_KEY: _key(files, name, part, dtype, fresh=False), _FROM: str(path)})
            found.append(WarmPart(path=entry, part=name, source=str(path), bytes=entry.stat().st_size))
    return found


def is_copied(part: Part[Any], dtype: torch.dtype) -> bool:
    """Whether loading a part in this dtype makes a copy of most of it: what can't be used where it lies in the file."""
    copied = sum(part.checkpoint.tensors[e.theirs].nbytes for e in part.entries if _copies(part.checkpoint, e, dtype))
    return 2 * copied > sum(part.checkpoint.tensors[e.theirs].nbytes for e in part.entries)


def _copies(checkpoint: Checkpoint, entry: Entry, dtype: torch.dtype) -> bool:
    return checkpoint.tensors[entry.theirs].dtype != dtype or not checkpoint.is_aligned(entry.theirs)


@contextmanager
def warm_parts(files: ModelFiles, dtype: torch.dtype) -> Iterator[dict[str, Part[Any]]]:
    """Open the parts to read in the place of an open model's own, for the time of the block: those with an entry."""
    with ExitStack() as stack:
        found: dict[str, Part[Any]] = {}
        folder = warm_folder()
        for name, part in files.parts.items() if folder.is_dir() else ():
            key = _key(files, name, part, dtype, fresh=False)
            path = folder / f"{name}-{key[:32]}{_SUFFIX}"
            if key and path.is_file() and (entry := _opened(path, key, part, dtype, stack)) is not None:
                found[name] = entry
        yield found


def entries() -> list[WarmPart]:
    """List everything in the cache that says it is an entry."""
    found = []
    for path in sorted(warm_folder().glob(f"*{_SUFFIX}")):
        try:
            with open_checkpoint(path) as checkpoint:
                source = checkpoint.metadata.get(_FROM, "")
        except CheckpointError as error:
            source = str(error)
        part = path.name.partition("-")[0]
        found.append(WarmPart(path=path, part=part, source=source, bytes=path.stat().st_size))
    return found


def _opened(path: Path, key: str, part: Part[Any], dtype: torch.dtype, stack: ExitStack) -> Part[Any] | None:
    """Open the entry, if it is whole and of this key; else a line in the log, and None."""
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as error:
        logger.warning("%s is not used: %s", path, error)
        return None
    stack.callback(checkpoint.close)
    expected = {e.ours: TensorInfo(dtype=dtype, shape=e.shape) for e in _own(part)}
    if checkpoint.metadata.get(_KEY) != key or dict(checkpoint.tensors) != expected:
        logger.warning("%s is not used: it isn't what its name says; delete it", path)
        return None
    return Part(module=part.module, entries=_own(part), checkpoint=checkpoint)


def _own(part: Part[Any]) -> tuple[Entry, ...]:
    """List a part's tensors under our names, in our shapes."""
    return tuple(Entry(name, name, tuple(tensor.shape)) for name, tensor in part.module.state_dict().items())


def _write(path: Path, part: Part[Any], dtype: torch.dtype, metadata: dict[str, str]) -> None:
    theirs = {entry.ours: entry.theirs for entry in part.entries}
    infos = {entry.ours: TensorInfo(dtype=dtype, shape=entry.shape) for entry in _own(part)}
    make_folder(path.parent)
    write_safetensors(
        path,
        infos,
        lambda name: part.checkpoint.read(theirs[name], dtype).reshape(infos[name].shape),
        metadata=metadata,
        overwrite=True,
    )


def _key(files: ModelFiles, name: str, part: Part[Any], dtype: torch.dtype, *, fresh: bool) -> str:
    """Hash the files' hashes, the part, whether it is the moving average, and the dtype.

    "" where a file's hash isn't remembered from when it was as it is now, unless it is to be computed: `fresh`.
    """
    digest = hashlib.sha256(f"{_VERSION} {name} {dtype_name(dtype)} {files.ema and name == 'unet'}".encode())
    for file in part.checkpoint.files:
        found = file_hash(file) if fresh else remembered_hash(file)
        if found is None:
            return ""
        digest.update(f" {found}".encode())
    for entry in part.entries:  # names and shapes: another config in the same file is another part
        digest.update(f"{entry.ours} {entry.theirs} {entry.shape}\n".encode())
    return digest.hexdigest()
