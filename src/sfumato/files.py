"""Writing files so that neither a crash nor a full disk leaves half of one, and names that stay in their folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sfumato.errors import InvalidRequest, OutputError, SfumatoError

MAX_NAME_BYTES = 200  # file systems allow 255; the rest is for our suffixes

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # device names on Windows
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up: free some space, or write elsewhere",
    errno.EFBIG: "the file would be larger than this file system allows: write smaller shards, or elsewhere",
    errno.EACCES: "no permission to write there: choose another folder",
    errno.EPERM: "no permission to write there: choose another folder",
    errno.EROFS: "the folder is read-only: choose another one",
    errno.ENOENT: "its folder does not exist: make it first",
    errno.ENOTDIR: "its folder is a file: choose another one",
    errno.EISDIR: "a folder has that name: choose another one",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EIO: "the disk reported an error",
}
# Inside the caller's block only these can be about our file; any other OSError is about something the caller read.
_WHILE_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
# What the system refuses whoever reads or writes, with words that are true of both.
_REFUSALS = {
    errno.EACCES: "no permission: choose another place, or have it given",
    errno.EPERM: "no permission: choose another place, or have it given",
} | {code: _REASONS[code] for code in (errno.EROFS, errno.ENAMETOOLONG, *_WHILE_WRITING)}
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})  # some network shares


def plain_name(name: str, *, what: str = "name") -> str:
    """Give `name` back if it is one harmless path component on every system, else raise `InvalidRequest`.

    Refused: separators, `.` and `..`, a leading dot, control characters, a trailing dot or space, characters and device
    names Windows reserves, and more than 200 bytes of UTF-8. `what` names the value in the message.
    """
    shown = repr(name if len(name) <= 60 else name[:57] + "…")
    if not name:
        raise InvalidRequest(f"{what} is empty: give it at least one character")
    if _FORBIDDEN.search(name):
        raise InvalidRequest(
            f"{what} {shown} has a character that can't be in a file name: leave out / \\ : * ? \" < > |"
        )
    if name[0] == "." or name[-1] in ". " or name[0] == " ":
        raise InvalidRequest(f"{what} {shown} must not start or end with a dot or a space")
    if _RESERVED.fullmatch(name):
        raise InvalidRequest(f"{what} {shown} is reserved by Windows: choose another")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{what} {shown} is not valid text") from error
    if size > MAX_NAME_BYTES:
        raise InvalidRequest(f"{what} {shown} is {size} bytes long: at most {MAX_NAME_BYTES}")
    return name


def user_path(text: str | Path) -> Path:
    """A path as people write it, with `~` for a home folder. `InvalidRequest` where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InvalidRequest(f"{text}: there is no such user's home folder; write the path out") from error


def system_refusal(error: OSError) -> str | None:
    """Say in a line what the system refused: the file's name and what to do; None where it may be our own mistake."""
    reason = _REFUSALS.get(error.errno or 0)
    return None if reason is None or error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"


@contextlib.contextmanager
def atomic_write(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Open a new file for writing that appears under `path` complete or not at all.

    The bytes go to a hidden file in the same folder, which is synced and renamed when the block ends, and removed when
    it raises. Raises `OutputError` (one line) when `path` exists and `overwrite` is false, when the folder can't be
    written, or when the disk is full.
    """
    _refuse_existing(path, overwrite)
    temporary = _temporary(path)
    with _naming(path):
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        # Closing writes what is still in a buffer, and so fails once more where the disk is full.
        with _naming(path, only=_WHILE_WRITING), os.fdopen(descriptor, "w+b") as file:
            yield file
            with _naming(path):
                file.flush()
                os.fsync(file.fileno())
        with _naming(path):
            _publish(temporary, path, overwrite)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Write a file whole or not at all, as `atomic_write`, by a program that wants a path: give that of the hidden
    file, not made yet."""
    _refuse_existing(path, overwrite)
    temporary = _temporary(path)
    try:
        with _naming(path, only=_WHILE_WRITING):
            yield temporary
        with _naming(path):
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            _publish(temporary, path, overwrite)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder within `folder` for the time of the block; `publish` gives what is finished its name."""
    temporary = _temporary(folder / "scratch")
    with _naming(folder):
        temporary.mkdir()
    try:
        with _naming(folder, only=_WHILE_WRITING):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(finished: Path, path: Path) -> None:
    """Give a finished file in a folder beside it the name `path`, in the place of what had it."""
    with _naming(path):
        with finished.open("rb") as file:
            os.fsync(file.fileno())
        _publish(finished, path, overwrite=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a process that was killed left hidden while it wrote there. No other may be writing."""
    for leftover in folder.glob(".*.part"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write `data` to `path` atomically; see `atomic_write` for the errors."""
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(data)


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write `text` as UTF-8 to `path` atomically; see `atomic_write` for the errors."""
    write_bytes(path, text.encode(), overwrite=overwrite)


def file_sha256(path: Path) -> str:
    """SHA-256 of what a file holds, in hexadecimal. Raises `OSError` where it can't be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Make the folder if it isn't there. `OutputError` says why it can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder could not be made ({error.strerror}): choose another one") from error


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill; it becomes `path` when the block ends, or vanishes when it raises.

    An existing empty folder is replaced; one with something in it only if `overwrite`. Two folders can't be exchanged
    in one step everywhere: for an instant the old one has a hidden name, and it is put back if the exchange fails.
    Raises `OutputError`.
    """
    if path.is_dir():
        if not overwrite and any(path.iterdir()):
            raise OutputError(f"{path}: the folder is not empty; pass overwrite (--overwrite) to replace it")
    else:
        _refuse_existing(path, overwrite=False)
    temporary = _temporary(path)
    with _naming(path):
        temporary.mkdir()
    try:
        with _naming(path, only=_WHILE_WRITING):
            yield temporary
        with _naming(path):
            _sync_tree(temporary)
            _exchange(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` during the block: one thread of one process at a time, the others wait.

    The system lets go of it when a process dies. The empty file stays, since whoever waits has it open. A file system
    that has no locks is used without. Raises `OutputError` where the file can't be made.
    """
    with _naming(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with _naming(path):
            _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _refuse_existing(path: Path, overwrite: bool) -> None:
    with _naming(path):
        if path.is_dir():
            raise OutputError(f"{path}: {_REASONS[errno.EISDIR]}")
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path}: already exists; pass overwrite (--overwrite) to replace it, or choose another name")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.part")


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give the finished file its name; without `overwrite`, fail rather than replace one that appeared meanwhile."""
    if overwrite:
        temporary.replace(path)
    else:
        try:
            os.link(temporary, path)  # unlike rename, this never replaces
        except FileExistsError:
            _refuse_existing(path, overwrite=False)
            raise
        except OSError:  # a file system without hard links (FAT, some network shares)
            _refuse_existing(path, overwrite=False)
            temporary.replace(path)
    _sync_folder(path.parent)


def _exchange(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        _sync_folder(path.parent)
        return
    old = _temporary(path)
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    _sync_folder(path.parent)
    if old.is_symlink():  # only the name was replaced: what it pointed to is not ours to delete
        old.unlink(missing_ok=True)
    else:
        shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for directory, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(directory) / name).open("rb") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(directory))


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Windows can't open folders, and some network shares can't sync them."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _naming(path: Path, *, only: frozenset[int] | None = None) -> Iterator[None]:
    """Turn an `OSError` (of the given kinds) into an `OutputError` naming `path`."""
    try:
        yield
    except SfumatoError:
        raise
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(f"{path}: could not be written: {reason}") from error
