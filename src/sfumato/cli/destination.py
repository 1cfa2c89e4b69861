"""Where a command's pictures go: one file the user named, or numbered files in a folder. Checked before any work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.errors import InvalidRequest, OutputError
from sfumato.pipeline.saving import next_path, picture_suffix, save_numbered, save_picture
from sfumato.runtime import require

if TYPE_CHECKING:
    from sfumato.pictures.pixels import Pixels
    from sfumato.pipeline.provenance import Provenance

ANIMATED = (".gif", ".webp", ".mp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """`file` is the one file to write, or None for numbered files in `folder`; `suffix` is the pictures' format."""

    folder: Path
    file: Path | None
    suffix: str
    overwrite: bool

    def save(self, pixels: Pixels, provenance: Provenance) -> Path:
        """Write one picture and give its path."""
        make_folder(self.folder)
        if self.file is not None:
            return save_picture(pixels, self.file, provenance, overwrite=self.overwrite)
        return save_numbered(pixels, self.folder, self.suffix, provenance)

    def save_sheet(self, pixels: Pixels, provenance: Provenance, *, alone: bool = False) -> Path:
        """Write a sheet beside the pictures, or, where it is `alone`, in the place of one."""
        make_folder(self.folder)
        if self.file is not None:
            path = self.file if alone else self.file.with_stem(f"{self.file.stem}-sheet")
            return save_picture(pixels, path, provenance, overwrite=self.overwrite)
        path = next_path(self.folder, provenance.request.seed, "sheet", self.suffix)
        return save_picture(pixels, path, provenance)


def destination(out: str, *, format: str | None, pictures: int, overwrite: bool, sheet: bool = False) -> Destination:  # noqa: A002
    """Decide from `--out`: a path that ends like a picture is a file, every other one a folder.

    Raises `InvalidRequest` for several pictures to one file or an unknown format, `OutputError` where the file is
    there already or the place can't be written.
    """
    path = Path(out).expanduser()
    suffix = picture_suffix(f".{format.lstrip('.')}") if format else None
    if path.is_dir() or not path.suffix:
        _check_writable(path)
        return Destination(folder=path, file=None, suffix=suffix or ".png", overwrite=overwrite)
    chosen = picture_suffix(path.suffix)
    if suffix is not None and suffix != chosen:
        raise InvalidRequest(f"out {path.name!r} and format {suffix[1:]!r} contradict each other: leave one out")
    if pictures > 1:
        raise InvalidRequest(f"out {out!r} is one file, but {pictures} pictures are to be made: give a folder")
    for file in (path, path.with_stem(f"{path.stem}-sheet"))[: 1 + sheet]:
        if not overwrite and os.path.lexists(file):
            raise OutputError(f"{file}: already exists: pass --overwrite to replace it, or choose another name")
    _check_writable(path.parent)
    return Destination(folder=path.parent, file=path, suffix=chosen, overwrite=overwrite)


def animation_path(out: str, seed: int, words: str, *, fps: float, overwrite: bool) -> Path:
    """The file for a moving picture: the one `out` names, or the next number in the folder it is, as WebP.

    Raises as `destination` does, and what `save_animation` would only find out when all frames are made.
    """
    path = Path(out).expanduser()
    if path.is_dir() or not path.suffix:
        path = next_path(path, seed, words, ".webp")
    elif path.suffix.lower() not in ANIMATED:
        raise InvalidRequest(f"animations can't be written as {path.suffix!r}: use {', '.join(ANIMATED)}")
    elif not overwrite and os.path.lexists(path):
        raise OutputError(f"{path}: already exists: pass --overwrite to replace it, or choose another name")
    if not 0.1 <= fps <= 100:
        raise InvalidRequest(f"fps {fps:g} must be from 0.1 to 100")
    if path.suffix.lower() == ".mp4":
        require("av", extra="video")
    _check_writable(path.parent)
    return path


def _check_writable(folder: Path) -> None:
    """Find out now what would only come out when the picture is finished. Nothing is made here."""
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise OutputError(f"{nearest}: is a file, so no pictures can be put into {folder}: choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{nearest}: no permission to write there, or read-only: choose another folder")


def make_folder(folder: Path) -> None:
    """Make the folder if it isn't there. `OutputError` says why it can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder could not be made ({error.strerror}): choose another one") from error
