"""Composed pictures drawn beforehand by several processes: where one thread that composes can't feed the device.

FOLDER/pixels.npy        (N, H, W, 3) uint8, memory-mapped when read
FOLDER/records.jsonl     key and captions of each, a line a sample
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

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
        """`DataError` where the folder doesn't hold what `render` writes."""
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
        for first, drawn, texts in _chunks(dataset, count, processes):
            if drawn.shape[1:] != shape:
                raise DataError(f"pictures of {drawn.shape[1:3]} and {shape[:2]} pixels: they must be of one size")
            pixels[first : first + len(drawn)] = drawn
            records.writelines(json.dumps(text) + "\n" for text in texts)
            on_progress(Progress(stage="draw", step=first + len(drawn), steps=count))
            cancellation.check()
    pixels.flush()


Chunk = tuple[int, Pixels, list[tuple[str, tuple[str, ...]]]]


def _chunks(dataset: Dataset, count: int, processes: int) -> Iterator[Chunk]:
    """The pictures in order, some at a time."""
    ranges = [range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]
    if processes == 1:
        yield from map(partial(_draw, dataset), ranges)
        return
    with ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_receive, initargs=(dataset,)
    ) as pool:
        yield from pool.map(_draw_received, ranges)


def _draw(dataset: Dataset, indices: range) -> Chunk:
    samples = [dataset.sample(index) for index in indices]
    try:
        pixels = np.stack([to_pixels(on_background(sample.picture)) for sample in samples])
    except ValueError as error:
        raise DataError(f"pictures from {samples[0].key!r} on are of several sizes: they must be of one") from error
    return indices.start, pixels, [(sample.key, sample.captions) for sample in samples]


_received: list[Dataset] = []  # the one that this process draws from


def _receive(dataset: Dataset) -> None:
    _received[:] = [dataset]


def _draw_received(indices: range) -> Chunk:
    return _draw(_received[0], indices)
