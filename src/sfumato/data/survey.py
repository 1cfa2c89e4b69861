"""One look at every picture of a data set: can it be read, how large is it, what does it look like.

    FOLDER/00000.npy      a thousand samples, one row each; there or not

Looking is most of the work of making shards, and a million pictures take hours: what has been seen is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfumato.data.near_duplicates import perceptual_hash
from sfumato.data.removals import Removals
from sfumato.data.samples import Dataset
from sfumato.errors import DataError
from sfumato.files import atomic_write
from sfumato.progress import Cancellation, OnProgress, Progress, ignore

SAMPLES_A_FILE = 1000

ROW = np.dtype([("fate", "<i4"), ("width", "<i4"), ("height", "<i4"), ("hash", "<u8")])

Survey = NDArray[np.void]  # (samples,) of ROW


class Outcome(IntEnum):
    """What is to become of a sample."""

    KEPT = 0
    UNREADABLE = 1
    NO_CAPTION = 2
    REMOVED = 3


def survey(
    dataset: Dataset,
    folder: Path,
    *,
    removals: Removals,
    captions_required: bool,
    workers: int = 1,
    on_progress: OnProgress = ignore,
    cancellation: Cancellation | None = None,
) -> Survey:
    """Look at every sample, or read what was seen before. `folder` must be there."""
    rows = np.zeros(len(dataset), ROW)
    stop = cancellation or Cancellation()

    def look(index: int) -> tuple[int, int, int, int]:
        return _seen(dataset, index, removals, captions_required)

    with ThreadPoolExecutor(workers, thread_name_prefix="samples") as threads:
        for number, part in enumerate(_parts(len(dataset))):
            on_progress(Progress(stage="samples", step=part.start, steps=len(dataset)))
            stop.check()
            path = folder / f"{number:05d}.npy"
            if not path.exists():
                seen = np.array(list(threads.map(look, part)), ROW)
                with atomic_write(path) as file:
                    np.save(file, seen, allow_pickle=False)
            rows[part.start : part.stop] = _read(path, len(part))
    return rows


def _parts(count: int) -> Iterator[range]:
    for start in range(0, count, SAMPLES_A_FILE):
        yield range(start, min(start + SAMPLES_A_FILE, count))


def _seen(dataset: Dataset, index: int, removals: Removals, captions_required: bool) -> tuple[int, int, int, int]:
    try:
        sample = dataset.sample(index)
    except DataError:
        return Outcome.UNREADABLE, 0, 0, 0
    width, height = sample.picture.size
    if removals.name(sample):
        return Outcome.REMOVED, width, height, 0
    if captions_required and not sample.captions:
        return Outcome.NO_CAPTION, width, height, 0
    return Outcome.KEPT, width, height, perceptual_hash(sample.picture)


def _read(path: Path, count: int) -> Survey:
    try:
        rows: Survey = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it, and run again") from error
    if rows.dtype != ROW or rows.shape != (count,):
        raise DataError(f"{path} is not of this data set: delete it, and run again")
    return rows
