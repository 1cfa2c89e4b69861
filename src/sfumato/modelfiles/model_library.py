"""The model library: from a name, path or Hub id to files on this machine. No name ever becomes part of a path."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from sfumato.errors import CheckpointError, HubError, InvalidRequest, ModelNotFound, OutputError
from sfumato.files import plain_name, user_path
from sfumato.modelfiles import hub
from sfumato.modelfiles.hash_cache import WEIGHT_SUFFIXES, hash_files
from sfumato.modelfiles.library_index import Record, change_records, read_records
from sfumato.progress import OnProgress, ignore

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "v1-1": "CompVis/stable-diffusion-v1-1",
        "v1-2": "CompVis/stable-diffusion-v1-2",
        "v1-3": "CompVis/stable-diffusion-v1-3",
        "v1-4": "CompVis/stable-diffusion-v1-4",
        "v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "v1-5-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    }
)
"""Short names of the published v1 models."""

MAX_SEARCHED = 10_000  # files looked at in the folders of SFUMATO_MODEL_PATH

Source = Literal["embedded", "library", "search path", "path", "hub cache"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLocation:
    """A model on this machine: a diffusers `folder` or a single `file`, and how it was found."""

    name: str
    kind: Literal["folder", "file"]
    path: Path
    source: Source
    hub_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """One weight file of a model: the hash noted when it was added, and the hash now (None: the file is gone)."""

    file: str
    expected: str
    found: str | None

    @property
    def ok(self) -> bool:
        return self.expected == self.found


def list_models() -> list[ModelLocation]:
    """List every model that has a name: the embedded one, those added or pulled, those in SFUMATO_MODEL_PATH."""
    return list(_named().values())


def resolve(
    name: str | Path,
    *,
    installed_only: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    offline: bool = False,
    variant: str | None = None,
    on_progress: OnProgress = ignore,
) -> ModelLocation:
    """Find a model by name, alias ("v1-4"), path, or Hub id, which is downloaded when it isn't in the Hub's cache.

    With `installed_only` (names that come from strangers, as on a server) only names count: no paths, no downloads. An
    alias is never downloaded, since it is too easily typed: `pull` does that. Raises `ModelNotFound` with close names
    and what to do, or `HubError`.
    """
    text = str(name)
    named = _remembered()
    if text not in named:  # the search path may be long and slow
        named = _named()
    hub_id = ALIASES.get(text, text)
    if not isinstance(name, Path):
        of_that_id = [location for location in named.values() if location.hub_id == hub_id]
        for location in [named[text]] if text in named else of_that_id:
            if _has_revision(location, revision):
                return _present(location)
    if installed_only:
        raise ModelNotFound(_unknown(text, named))
    if isinstance(name, Path) or _looks_like_path(text):
        return _at_path(user_path(text))
    if not hub.is_hub_id(hub_id):
        if Path(text).is_dir():
            raise ModelNotFound(f"no model {text[:80]!r} by that name: for the folder here, write ./{text[:80]}")
        raise ModelNotFound(_unknown(text, named))
    try:
        return _from_hub(text, hub.cached(hub_id, revision=revision))
    except HubError as error:
        if text in ALIASES:
            raise ModelNotFound(_unknown(text, named)) from error
        if offline:
            raise
    snapshot = hub.download(hub_id, revision=revision, token=token, variant=variant, on_progress=on_progress)
    return _from_hub(text, snapshot)


def pull(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    variant: str | None = None,
    on_progress: OnProgress = ignore,
) -> ModelLocation:
    """Download a model by alias or Hub id and remember it: under the alias, or the last part of the id.

    Its files are hashed, which `verify` compares with. Raises `HubError`, `InvalidRequest` or `OutputError`.
    """
    hub_id = ALIASES.get(name, name)
    alias = next((alias for alias, known in ALIASES.items() if known == hub_id), hub_id.rpartition("/")[2])
    _check_free(plain_name(alias, what="model name"), read_records(), hub_id=hub_id)
    snapshot = hub.download(hub_id, revision=revision, token=token, variant=variant, on_progress=on_progress)
    record = Record(
        name=alias,
        path=str(snapshot.path),
        hub_id=hub_id,
        revision=snapshot.revision,
        files=hash_files(snapshot.path, fresh=False),  # compared with the Hub's a moment ago
    )

    def change(records: dict[str, Record]) -> None:
        _check_free(alias, records, hub_id=hub_id)  # again: downloading and hashing took their time
        records[alias] = record

    change_records(change)
    return _from_record(record)


def add(path: Path, *, name: str | None = None, overwrite: bool = False) -> ModelLocation:
    """Remember a model that is on this machine, under `name` or its file's. The files stay where they are.

    Raises `ModelNotFound` (no such path), `CheckpointError` (no model there) or `InvalidRequest` (the name).
    """
    location = _at_path(user_path(path))
    chosen = plain_name(name if name is not None else location.name, what="model name")
    check = not overwrite or chosen in _embedded()
    if check:
        _check_free(chosen, read_records(), hub_id=None)
    _check_model(location)
    files = hash_files(location.path)
    if not files:
        raise CheckpointError(f"{path}: has no weights ({', '.join(WEIGHT_SUFFIXES)})")
    record = Record(name=chosen, path=str(location.path), files=files)

    def change(records: dict[str, Record]) -> None:
        if check:
            _check_free(chosen, records, hub_id=None)  # again: hashing took its time
        records[chosen] = record

    change_records(change)
    return _from_record(record)


def _check_model(location: ModelLocation) -> None:
    """Raise `CheckpointError` where there is no model: a file whose header says nothing, a folder without a UNet."""
    from sfumato.weights.checkpoint import open_checkpoint  # it imports torch

    if location.kind == "file":
        open_checkpoint(location.path).close()
    elif not (location.path / "unet").is_dir():
        raise CheckpointError(f"{location.path}: not a model folder: it has no folder unet")


def remove(name: str, *, delete_files: bool = False) -> int:
    """Forget a model; with `delete_files` also delete what `pull` downloaded. Returns the bytes freed.

    Files that were only added are the user's and are never deleted. Raises `ModelNotFound`, `InvalidRequest` or
    `OutputError`.
    """
    records = read_records()
    if name not in records:
        if name in _named():
            raise InvalidRequest(f"model {name!r} was not added or pulled, so it can't be removed here")
        raise ModelNotFound(_unknown(name, _named()))
    record = records[name]
    if delete_files and (record.hub_id is None or record.revision is None):
        raise InvalidRequest(f"model {name!r} was not downloaded by sfumato: delete {record.path} yourself")

    def change(records: dict[str, Record]) -> None:
        records.pop(name, None)  # gone meanwhile is as good

    change_records(change)
    if not delete_files:
        return 0
    try:
        return hub.forget(str(record.hub_id), str(record.revision))
    except OSError as error:
        raise OutputError(f"{record.path}: could not be deleted: {error.strerror or error}") from error


def verify(name: str) -> list[FileCheck]:
    """Hash a model's files again, beside what was noted when it was added or pulled, by its name or its Hub id.

    Nothing is noted of the embedded model, whose files the package's installer has compared. Raises `ModelNotFound` or
    `InvalidRequest`.
    """
    records = read_records()
    of_that_id = (record for record in records.values() if record.hub_id == ALIASES.get(name, name))
    record = records.get(name) or next(of_that_id, None)
    if record is None:
        location = resolve(name, installed_only=True)
        if location.source == "embedded":
            return []
        raise InvalidRequest(f"no hashes of {location.name!r} were noted: sfumato models add {location.path}")
    path = Path(record.path)
    now = hash_files(path) if path.exists() else {}
    return [
        FileCheck(file=file, expected=expected, found=now.get(file)) for file, expected in sorted(record.files.items())
    ]


def _named() -> dict[str, ModelLocation]:
    """Names in order of precedence: embedded, library, search path (its folders in order, the first of a name wins)."""
    named = _remembered()
    for location in _searched():
        named.setdefault(location.name, location)
    return named


def _remembered() -> dict[str, ModelLocation]:
    return {name: _from_record(record) for name, record in read_records().items()} | _embedded()


def _embedded() -> dict[str, ModelLocation]:
    assets = Path(__file__).resolve().parent.parent / "assets"
    return {"pocket": ModelLocation(name="pocket", kind="folder", path=assets / "pocket", source="embedded")}


def _searched() -> list[ModelLocation]:
    found: list[ModelLocation] = []
    seen = 0
    for entry in filter(None, os.environ.get("SFUMATO_MODEL_PATH", "").split(os.pathsep)):
        for folder, folders, files in os.walk(user_path(entry)):
            folders.sort()
            seen += len(files)
            if seen > MAX_SEARCHED:
                reason = f"more than {MAX_SEARCHED} files: name smaller folders than {entry}"
                raise InvalidRequest(f"SFUMATO_MODEL_PATH: {reason}")
            for file in sorted(files):
                path = Path(folder) / file
                if path.suffix in (".safetensors", ".ckpt"):
                    found.append(ModelLocation(name=path.stem, kind="file", path=path, source="search path"))
    return found


def _from_record(record: Record) -> ModelLocation:
    path = Path(record.path)
    return ModelLocation(
        name=record.name,
        kind="folder" if path.suffix not in WEIGHT_SUFFIXES else "file",
        path=path,
        source="library",
        hub_id=record.hub_id,
        revision=record.revision,
    )


def _has_revision(location: ModelLocation, revision: str | None) -> bool:
    """Whether a model is at this revision, or has none because it isn't from the Hub."""
    return revision is None or location.hub_id is None or location.revision == revision


def _present(location: ModelLocation) -> ModelLocation:
    if not location.path.exists():
        name = location.name
        raise ModelNotFound(
            f"model {name!r} was at {location.path}, now gone: put it back, or sfumato models rm {name}"
        )
    return location


def _from_hub(name: str, snapshot: hub.Snapshot) -> ModelLocation:
    return ModelLocation(
        name=name,
        kind="folder" if snapshot.path.is_dir() else "file",
        path=snapshot.path,
        source="hub cache",
        hub_id=snapshot.hub_id,
        revision=snapshot.revision,
    )


def _looks_like_path(text: str) -> bool:
    separators = [mark for mark in (os.sep, os.altsep) if mark]
    if text.startswith(("~", ".")) or text.endswith(WEIGHT_SUFFIXES) or Path(text).is_absolute():
        return True
    return any(mark in text for mark in separators) and (not hub.is_hub_id(text) or Path(text).exists())


def _at_path(path: Path) -> ModelLocation:
    try:
        if path.is_dir():
            if not (path / hub.INDEX).is_file():
                raise CheckpointError(f"{path}: not a model folder: it has no {hub.INDEX}")
            return ModelLocation(name=path.resolve().name, kind="folder", path=path.resolve(), source="path")
        if path.is_file():
            return ModelLocation(name=path.stem, kind="file", path=path.absolute(), source="path")
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"{str(path)[:80]!r} can't be a path: {error}") from error
    raise ModelNotFound(f"{path}: no such file or folder; sfumato models list shows the models that have names")


def _check_free(name: str, records: Mapping[str, Record], *, hub_id: str | None) -> None:
    """Raise `InvalidRequest` if `name` is another model's."""
    record = records.get(name)
    if name in _embedded() or (record is not None and (hub_id is None or record.hub_id != hub_id)):
        raise InvalidRequest(f"model name {name!r} is taken: choose another with --name, or remove that one first")


def _unknown(name: str, named: Mapping[str, ModelLocation]) -> str:
    """Say that there is no model of that name, which may be meant, and how to get it."""
    if name in ALIASES:
        return f"{name} is {ALIASES[name]}, which is not on this machine: get it with `sfumato models pull {name}`"
    close = difflib.get_close_matches(name, [*named, *ALIASES], n=3)
    hint = f", did you mean {' or '.join(close)}?" if close else ""
    return f"no model {name[:80]!r}{hint}; see `sfumato models list`, or get it with `sfumato models pull OWNER/NAME`"
