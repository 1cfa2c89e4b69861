"""A folder given by a person → the data set in it, whatever kind that is."""

from __future__ import annotations

from pathlib import Path

from sfumato.data.folder import open_folder
from sfumato.data.samples import StoredDataset
from sfumato.data.shards import MANIFEST, open_shards
from sfumato.errors import DataError


def open_dataset(folder: Path, *, captions_required: bool = True) -> StoredDataset:
    """Shards where there are any (`*.tar`), else the pictures in the folder, all with captions unless they aren't
    `captions_required` (of shards that only shows when a sample is read). `DataError` where there is neither."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give one with pictures or with shards (*.tar)")
    if (folder / MANIFEST).is_file() or any(folder.glob("*.tar")):
        return open_shards(folder)
    return open_folder(folder, captions_required=captions_required)
