"""Tokenizers by name, and the one that a run keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sfumato.errors import InvalidConfig, ModelNotFound
from sfumato.files import atomic_folder, locked, make_folder, user_path
from sfumato.modelfiles.model_library import resolve
from sfumato.modelfiles.open_model import open_model, published_v1
from sfumato.modelfiles.publish_model import write_tokenizer
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.prompt.tokenizer import tokenizer_files as files_in
from sfumato.train.run_folder import PARTS, is_run

TokenizerFiles = tuple[Mapping[str, str], Path]
"""A tokenizer's files by name, and where they are from."""


def tokenizer_files(name: str | None, start: str | None, run: Path) -> TokenizerFiles:
    """The files of the tokenizer of the model or folder that is named, else the run's own, else of the model or run
    that it starts from, else v1's. Raises as `tokenizer_folder` and `open_model` do."""
    if name is None and is_run(run):
        return files_in(tokenizer_folder(run)), run
    if name is None and start is None:
        return published_v1()[0], Path("v1")
    path = user_path(name or start or "")
    if name is None and is_run(path):
        return files_in(tokenizer_folder(path)), path
    if (path / "vocab.json").is_file() or (path / "tokenizer.json").is_file():
        return files_in(path), path
    found = resolve(name or start or "").path
    with open_model(found) as files:
        return files.tokenizer, found


def tokenizer_folder(run: Path) -> Path:
    """Where a run keeps its tokenizer. `ModelNotFound` where it has none."""
    folder = run / PARTS / "tokenizer"
    if not folder.is_dir():
        raise ModelNotFound(f"{run} holds no tokenizer: it is no run of train diffusion or clip")
    return folder


def keep_tokenizer(
    run: Path, files: Mapping[str, str], where: Path, *, check: Callable[[Tokenizer], object]
) -> Tokenizer:
    """Put a tokenizer's files beside the run, and read it; one that `check` refuses isn't kept.

    `InvalidConfig` where the run was begun with another; raises what `check` raises.
    """
    tokenizer = Tokenizer.from_files(files, folder=where)
    folder = run / PARTS / "tokenizer"
    if not is_run(run):
        check(tokenizer)
    make_folder(folder.parent)
    with locked(folder.parent / ".lock"):  # processes of one run find the parts in turn
        if not folder.is_dir():
            with atomic_folder(folder) as temporary:
                write_tokenizer(files, temporary)
    kept = Tokenizer.from_folder(folder)
    if kept.backend.to_str() != tokenizer.backend.to_str():
        raise InvalidConfig(f"{run} was begun with another tokenizer: leave --tokenizer out, or give another --out")
    return kept
