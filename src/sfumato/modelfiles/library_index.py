"""What `sfumato models` remembers: which names stand for which files, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sfumato.errors import CheckpointError, InvalidConfig, InvalidRequest, ModelNotFound, OutputError
from sfumato.files import file_sha256, locked, plain_name, user_path, write_text
from sfumato.json_files import read_object
from sfumato.runtime import logger

WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A model the user added or pulled: where it is, where it came from, and each file's SHA-256 then."""

    name: str
    path: str
    hub_id: str | None = None
    revision: str | None = None
    files: dict[str, str] = field(default_factory=dict)


def data_dir() -> Path:
    """Where the library keeps its lists: SFUMATO_HOME, else the system's place for a user's data."""
    if home := os.environ.get("SFUMATO_HOME"):
        return user_path(home)
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "sfumato"
    xdg = os.environ.get("XDG_DATA_HOME", "")
    return (Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".local" / "share") / "sfumato"


def read_records() -> dict[str, Record]:
    """Every remembered model by name. `InvalidConfig` names the file if it was damaged by hand."""
    path = data_dir() / "models.json"
    content = _read_json(path)
    if content is None:
        return {}
    try:
        if content["version"] != _VERSION:
            raise InvalidConfig(f"{path}: written by another version of sfumato; move it away and add the models again")
        return {plain_name(name): Record(name=name, **fields) for name, fields in content["models"].items()}
    except (KeyError, TypeError, AttributeError, InvalidRequest) as error:
        raise InvalidConfig(f"{path}: damaged ({error}); move it away and add the models again") from error


def change_records(change: Callable[[dict[str, Record]], None]) -> None:
    """Apply `change` to the records as they are now on disk, and write them back; nobody else's change comes between.

    What `change` raises leaves them as they were.
    """
    path = data_dir() / "models.json"
    with _changing(path):
        records = read_records()
        change(records)
        models = {}
        for name, record in sorted(records.items()):
            models[name] = {key: value for key, value in asdict(record).items() if key != "name" and value}
        _write_json(path, {"version": _VERSION, "models": models})


def weight_files(path: Path) -> list[Path]:
    """The weight files a model consists of: itself, or those in a folder and its components' folders."""
    if path.is_file():
        return [path]
    found = [file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.suffix in WEIGHT_SUFFIXES]
    return sorted(file for file in found if file.is_file())


def hash_files(path: Path) -> dict[str, str]:
    """SHA-256 of each weight file, read now, by its name relative to the model's folder."""
    folder = path.parent if path.is_file() else path
    return {file.relative_to(folder).as_posix(): _hash(file, fresh=True) for file in weight_files(path)}


def model_hash(path: Path) -> str:
    """SHA-256 of a model's weights: of the file, or for a folder of its weight files' names and hashes in order.

    Remembered by path, size and time of change, so that a model is read once. Raises `CheckpointError`.
    """
    files = weight_files(path)
    if not files:
        raise CheckpointError(f"{path}: no weights to hash in it")
    hashes = [_hash(file, fresh=False) for file in files]
    if path.is_file():
        return hashes[0]
    lines = [f"{digest}  {file.relative_to(path).as_posix()}\n" for file, digest in zip(files, hashes, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_hash(path: Path, *, fresh: bool = False) -> str:
    """SHA-256 of one file, remembered as `model_hash` remembers it; `fresh` reads it now. Raises `CheckpointError`."""
    return _hash(path, fresh=fresh)


def remembered_hash(path: Path) -> str | None:
    """SHA-256 of a file that was hashed before and hasn't changed since, by size and time; None for any other."""
    try:
        status = path.stat()
    except OSError:
        return None
    entry = _known_hashes(data_dir() / "hashes.json").get(str(path.resolve()))
    if isinstance(entry, dict) and entry.get("stamp") == [status.st_size, status.st_mtime_ns]:
        return entry["sha256"] if isinstance(entry.get("sha256"), str) else None
    return None


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error


def _hash(path: Path, *, fresh: bool) -> str:
    """SHA-256 of a file, remembered from the last time unless `fresh`."""
    if not fresh and (known := remembered_hash(path)) is not None:
        return known
    status = path.stat()
    key, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
    store = data_dir() / "hashes.json"
    digest = _sha256(path)
    try:
        with _changing(store):
            _write_json(store, _known_hashes(store) | {key: {"stamp": stamp, "sha256": digest}})
    except OutputError as error:
        logger.debug("hash of %s not remembered: %s", path, error)
    return digest


def _known_hashes(store: Path) -> dict[str, Any]:
    try:
        return _read_json(store) or {}
    except InvalidConfig:
        return {}  # only a cache: made anew


def _read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file. `InvalidConfig` names one that is damaged, and what to do."""
    try:
        return read_object(path)
    except ModelNotFound:
        return None
    except InvalidConfig as error:
        raise InvalidConfig(f"{error}; move it away and add the models again") from error


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """The list at `path` is ours alone to read and write again; its folder is there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: can't be made: {error.strerror or error}; set SFUMATO_HOME") from error
    with locked(path.with_suffix(".lock")):
        yield


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", overwrite=True)
