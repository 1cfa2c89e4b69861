"""What `sfumato models` remembers: which names stand for which files, and their hashes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sfumato.errors import InvalidConfig, InvalidRequest, ModelNotFound, OutputError
from sfumato.files import locked, plain_name, user_path, write_text
from sfumato.json_files import read_object

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
    """Read every remembered model by name. `InvalidConfig` names the file if it was damaged by hand."""
    path = data_dir() / "models.json"
    content = read_list(path)
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
    with changing_list(path):
        records = read_records()
        change(records)
        models = {}
        for name, record in sorted(records.items()):
            models[name] = {key: value for key, value in asdict(record).items() if key != "name" and value}
        write_list(path, {"version": _VERSION, "models": models})


def read_list(path: Path) -> dict[str, Any] | None:
    """Read a list, None where there is no such file. `InvalidConfig` names one that is damaged, and what to do."""
    try:
        return read_object(path)
    except ModelNotFound:
        return None
    except InvalidConfig as error:
        raise InvalidConfig(f"{error}; move it away and add the models again") from error


@contextmanager
def changing_list(path: Path) -> Iterator[None]:
    """Have the list at `path` for ourselves, to read and write again; its folder is there. Raises `OutputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: can't be made: {error.strerror or error}; set SFUMATO_HOME") from error
    with locked(path.with_suffix(".lock")):
        yield


def write_list(path: Path, content: dict[str, Any]) -> None:
    """Write a list for people to read, too. Raises `OutputError`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", overwrite=True)
