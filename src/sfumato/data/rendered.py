"""Composed pictures drawn beforehand by several processes: where one thread that composes can't feed the device.

FOLDER/pixels.npy        (N, H, W, 3) uint8, memory-mapped when read
FOLDER/records.jsonl     key and captions of each, a line a sample
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data.process_pool import process_pool
from sfumato.data.samples import Dataset, Record, Sample
from sfumato.data.transforms import Pixels, on_background, to_pixels
from sfumato.errors import DataError
from sfumato.files import atomic_folder, make_folder
from sfumato.progress import Cancellation, OnProgress, Progress, ignore

_PIXELS, _RECORDS = "pixels.npy", "records.jsonl"
_CHUNK = 256


class Rendered:
    """The pictures and captions of a data set, as `render` stored them; nothing else of its records.

    `pixels` (N, H, W, 3) of bytes is the mapped file.
    """

    def __init__(self, folder: Path) -> None:
        """Raise `DataError` where the folder doesn't hold what `render` writes."""
        try:
            self.pixels: Pixels = np.load(folder / _PIXELS, mmap_mode="r", allow_pickle=False)
            lines = (folder / _RECORDS).read_text(encoding="utf-8").splitlines()
            texts = [json.loads(line) for line in lines]
            self._records = [Record(key=key, captions=tuple(captions), fields={}) for key, captions in texts]
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{folder} holds no rendered pictures ({error}): delete it, and render them again"
            ) from error
        if self.pixels.ndim != 4 or len(self.pixels) != len(self._records):
            raise DataError(f"{folder}: pictures and captions don't fit each other: delete it, and render them again")

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> Record:
        return self._records[index]

    def sample(self, index: int) -> Sample:
        record = self._records[index]
        picture = Image.fromarray(self.pixels[index])
        return Sample(key=record.key, captions=record.captions, fields=record.fields, picture=picture)


def render(
    dataset: Dataset,
    folder: Path,
    *,
    processes: int,
    on_progress: OnProgress = ignore,
    cancellation: Cancellation | None = None,
) -> Rendered:
    """Draw all of `dataset`, whose pictures must be of one size and which must survive pickling, into `folder`; what
    is there already is taken as it is. `DataError` for pictures of several sizes; stopped, it begins anew."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with atomic_folder(folder) as temporary:
            _write(dataset, temporary, processes, on_progress, cancellation or Cancellation())
    return Rendered(folder)


def _write(dataset: Dataset, folder: Path, processes: int, on_progress: OnProgress, cancellation: Cancellation) -> None:
    count = len(dataset)
    on_progress(Progress(stage="draw", step=0, steps=count))
    shape = to_pixels(dataset.sample(0).picture).shape
    pixels = np.lib.format.open_memmap(folder / _PIXELS, mode="w+", dtype=np.uint8, shape=(count, *shape))
    with (folder / _RECORDS).open("w", encoding="utf-8") as records:
        done = 0
        for texts in _chunks(dataset, pixels, folder / _PIXELS, processes):
            records.writelines(json.dumps(text) + "\n" for text in texts)
            done += len(texts)
            on_progress(Progress(stage="draw", step=done, steps=count))
            cancellation.check()
    pixels.flush()


Texts = list[tuple[str, tuple[str, ...]]]
"""Keys and captions of some samples, whose pictures are drawn."""


def _chunks(dataset: Dataset, pixels: Pixels, path: Path, processes: int) -> Iterator[Texts]:
    """Draw the pictures in order, some at a time."""
    count = len(dataset)
    ranges = [range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]
    if processes == 1:
        yield from map(partial(_draw, dataset, pixels), ranges)
        return
    with process_pool(processes, _receive, dataset, path) as pool:
        yield from pool.map(_draw_received, ranges)


def _draw(dataset: Dataset, pixels: Pixels, indices: range) -> Texts:
    texts = []
    for index in indices:
        sample = dataset.sample(index)
        drawn = to_pixels(on_background(sample.picture))
        if drawn.shape != pixels.shape[1:]:
            sizes = f"pictures of {drawn.shape[:2]} and {pixels.shape[1:3]} pixels"
            raise DataError(f"{sizes} ({sample.key!r:.80}): they must be of one size")
        pixels[index] = drawn
        texts.append((sample.key, sample.captions))
    return texts


_received: list[tuple[Dataset, Pixels]] = []  # what this process draws from, and into


def _receive(dataset: Dataset, path: Path) -> None:
    # every process writes its own rows of the one mapped file: no picture passes through a pipe
    _received[:] = [(dataset, np.load(path, mmap_mode="r+", allow_pickle=False))]


def _draw_received(indices: range) -> Texts:
    return _draw(*_received[0], indices)
