"""SHA-256 of weight files, each read once: remembered by path, size and time of change in the library's folder."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from sfumato.errors import CheckpointError, InvalidConfig, OutputError
from sfumato.files import file_sha256
from sfumato.modelfiles.library_index import changing_list, data_dir, read_list, write_list
from sfumato.runtime import logger

WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def hash_files(path: Path, *, fresh: bool = True) -> dict[str, str]:
    """Give the SHA-256 of each weight file of a model by its name relative to the model's folder; read now if `fresh`.

    Raises `CheckpointError`.
    """
    folder = path.parent if path.is_file() else path
    return {file.relative_to(folder).as_posix(): file_hash(file, fresh=fresh) for file in _weight_files(path)}


def weights_hash(path: Path) -> str:
    """Hash a weight file, or a folder's: the lines that `sha256sum` writes for those. The result is a SHA-256.

    Which weights a model is, `identity.ModelIdentity` says: it counts the files that are read. Raises
    `CheckpointError`.
    """
    files = _weight_files(path)
    if not files:
        raise CheckpointError(f"{path}: no weights to hash in it")
    if path.is_file():
        return file_hash(path)
    lines = [f"{file_hash(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_hash(path: Path, *, fresh: bool = False) -> str:
    """Give the SHA-256 of one file, remembered from the last time; `fresh` reads it now. Raises `CheckpointError`."""
    if not fresh and (known := remembered_hash(path)) is not None:
        return known
    stamp = list(stamp_of(path))
    digest = _sha256(path)
    _remember(path, {"stamp": stamp, "sha256": digest})
    return digest


def remembered_hash(path: Path) -> str | None:
    """Give the SHA-256 of a file hashed before that hasn't changed since, by size and time; None for any other."""
    entry = _known_hashes(_store()).get(str(path.resolve()))
    if isinstance(entry, dict) and path.exists() and entry.get("stamp") == list(stamp_of(path)):
        return entry["sha256"] if isinstance(entry.get("sha256"), str) else None
    return None


def stamp_of(path: Path) -> tuple[int, int]:
    """Read size and time of change of a file. Raises `CheckpointError`."""
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns


def _weight_files(path: Path) -> list[Path]:
    """List the weight files in a path: itself, or those in a folder and its components' folders."""
    if path.is_file():
        return [path]
    found = [file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.suffix in WEIGHT_SUFFIXES]
    return sorted(file for file in found if file.is_file())


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error


def _store() -> Path:
    return data_dir() / "hashes.json"


def _remember(path: Path, entry: dict[str, Any]) -> None:
    store = _store()
    try:
        with changing_list(store):
            write_list(store, _known_hashes(store) | {str(path.resolve()): entry})
    except OutputError as error:
        _warn_forgetful(str(error))


@functools.cache
def _warn_forgetful(reason: str) -> None:
    """Log, once in a process, why hashes aren't remembered: nothing else is lost by it."""
    logger.warning("hashes of models are not remembered, and so computed every time: %s", reason)


def _known_hashes(store: Path) -> dict[str, Any]:
    try:
        return read_list(store) or {}
    except InvalidConfig:
        return {}  # only a cache: made anew
