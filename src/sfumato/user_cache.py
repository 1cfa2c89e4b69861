"""The user's cache: where it is, what it holds by kind, and how to be rid of it. Only names listed here are deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sfumato.choices import check_choice
from sfumato.errors import OutputError

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKind:
    """A kind of cache entries: `pattern` finds them right in the cache's folder."""

    pattern: str
    about: str


KINDS: Mapping[str, CacheKind] = {
    "warm": CacheKind(pattern="warm", about="weights as a run uses them, by `sfumato models warm`"),
    "kernels": CacheKind(pattern="kernels-*.so", about="C++ kernels compiled for this processor"),
    "openvino": CacheKind(pattern="openvino", about="networks converted for OpenVINO, one a size"),
    "bench": CacheKind(pattern="bench", about="the random model of `sfumato bench`"),
}


def cache_folder() -> Path:
    """The user's own folder for what can be made anew, in the place the XDG convention (on Windows, `LOCALAPPDATA`)
    gives it."""
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(home) if home else Path.home() / ".cache") / "sfumato"


def contents() -> dict[str, int]:
    """Count the bytes of each kind."""
    return {name: sum(map(size_of, _entries(kind))) for name, kind in KINDS.items()}


def cleared(name: str) -> int:
    """Delete everything of a kind, or of all; the bytes freed. Raises `InvalidRequest` or `OutputError`."""
    check_choice("kind", name, (*KINDS, ALL))
    freed = 0
    for kind in KINDS.values() if name == ALL else (KINDS[name],):
        for entry in _entries(kind):
            size = size_of(entry)
            try:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            except OSError as error:
                raise OutputError(f"{entry}: could not be deleted: {error.strerror or error}") from error
            freed += size
    return freed


def size_of(entry: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [entry] if entry.is_file() else [file for file in entry.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _entries(kind: CacheKind) -> list[Path]:
    return sorted(cache_folder().glob(kind.pattern))
