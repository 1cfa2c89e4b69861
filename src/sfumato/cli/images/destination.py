"""Where a command's pictures go: one file the user named, or numbered files in a folder. Checked before any work."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sfumato.errors import InvalidRequest, OutputError
from sfumato.files import make_folder, user_path
from sfumato.pipeline.animation import save_animation
from sfumato.pipeline.saving import encode_picture, picture_suffix, save_numbered, save_picture, write_numbered
from sfumato.runtime import require

if TYPE_CHECKING:
    from sfumato.pictures.pixels import Pixels
    from sfumato.pipeline.provenance import Provenance

ANIMATED = (".gif", ".webp", ".mp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where pictures go: `file` is the one file to write, or None for numbered files in `folder`; `suffix` is the
    pictures' format."""

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
        data = encode_picture(pixels, self.suffix, provenance)
        return write_numbered(data, self.folder, provenance.request.seed, "sheet", self.suffix)

    def save_animation(self, frames: Iterable[Pixels], provenance: Provenance, words: str, *, fps: float) -> Path:
        """Write a moving picture from frames, taken as they come, and give its path. `words` name a numbered one."""
        make_folder(self.folder)
        if self.file is not None:
            return save_animation(frames, self.file, fps=fps, provenance=provenance, overwrite=self.overwrite)
        with TemporaryDirectory(prefix=".walk-", dir=self.folder) as hidden:  # which number is free only shows then
            made = save_animation(frames, Path(hidden, f"walk{self.suffix}"), fps=fps, provenance=provenance)
            return write_numbered(made.read_bytes(), self.folder, provenance.request.seed, words, self.suffix)


def destination(
    out: str,
    *,
    format: str | None,  # noqa: A002
    preferred: str | None = None,
    pictures: int,
    overwrite: bool,
    sheet: bool = False,
) -> Destination:
    """Decide from `--out`: a path that ends like a picture is a file, every other one a folder.

    `format` is a flag's, which must not contradict a file's name; `preferred` is a setting's, which yields to both.
    Raises `InvalidRequest` for several pictures to one file or an unknown format, `OutputError` where the file is
    there already or the place can't be written.
    """
    path, is_folder = _place(out)
    suffix, usual = (picture_suffix(f".{name.lstrip('.')}") if name else None for name in (format, preferred))
    if is_folder:
        check_writable(path)
        return Destination(folder=path, file=None, suffix=suffix or usual or ".png", overwrite=overwrite)
    chosen = picture_suffix(path.suffix)
    if suffix is not None and suffix != chosen:
        raise InvalidRequest(f"out {path.name!r} and format {suffix[1:]!r} contradict each other: leave one out")
    if pictures > 1:
        raise InvalidRequest(f"out {out!r} is one file, but {pictures} pictures are to be made: give a folder")
    for file in (path, path.with_stem(f"{path.stem}-sheet"))[: 1 + sheet]:
        check_free(file, overwrite)
    check_writable(path.parent)
    return Destination(folder=path.parent, file=path, suffix=chosen, overwrite=overwrite)


def animation_destination(out: str, *, fps: float, overwrite: bool) -> Destination:
    """Where a moving picture goes: the file `out` names, or, as WebP, the folder it is.

    Raises as `destination` does, and what `save_animation` would only find out when all frames are made:
    `InvalidRequest` for another format or speed.
    """
    path, is_folder = _place(out)
    suffix = ".webp" if is_folder else path.suffix.lower()
    if suffix not in ANIMATED:
        raise InvalidRequest(f"animations can't be written as {path.suffix!r}: use {', '.join(ANIMATED)}")
    if not is_folder:
        check_free(path, overwrite)
    if not 0.1 <= fps <= 100:
        raise InvalidRequest(f"fps {fps:g} must be from 0.1 to 100")
    if suffix == ".mp4":
        require("av", extra="video")
    folder = path if is_folder else path.parent
    check_writable(folder)
    return Destination(folder=folder, file=None if is_folder else path, suffix=suffix, overwrite=overwrite)


def _place(out: str) -> tuple[Path, bool]:
    """The path `--out` says, and whether it is a folder's: one that is there, has no suffix or ends in a slash."""
    if not out:
        raise InvalidRequest("out '' names nothing: give a file or a folder, such as pictures")
    path = user_path(out)
    return path, path.is_dir() or not path.suffix or out.endswith(("/", os.sep))


def check_free(file: Path, overwrite: bool) -> None:
    """Refuse now, and not when the work is done, a file that is there already, or a folder. Raises `OutputError`, and
    `OSError` for a name that can't be one."""
    try:
        mode = file.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(mode):
        raise OutputError(f"{file}: is a folder: give a file's name")
    if not overwrite:
        raise OutputError(f"{file}: already exists: pass --overwrite to replace it, or choose another name")


def check_writable(folder: Path) -> None:
    """Find out now what would only come out when the picture is finished. Nothing is made here. Raises
    `OutputError`."""
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise OutputError(f"{nearest}: is a file, so nothing can be put into {folder}: choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{nearest}: no permission to write there, or read-only: choose another folder")
