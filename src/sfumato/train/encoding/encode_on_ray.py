"""Encode on a Ray cluster: actors with an autoencoder each, to which Ray Data hands the numbers of parts.

Each actor writes its parts itself, into a folder that all machines must share, as they do what the data set reads. A
part is made just as this process would make it, so that on machines of one kind the bytes are the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato import errors
from sfumato.errors import SfumatoError
from sfumato.models.autoencoder import Autoencoder
from sfumato.runtime import require, resolve_device
from sfumato.train.encoding.encode_dataset import Count, Encoding, WriteParts, encode_here


class PartWriter:
    """What runs on a worker: one autoencoder on one device."""

    def __init__(
        self, encoding: Encoding, autoencoder: Autoencoder, folder: str, device: str, threads: int, workers: int
    ) -> None:
        torch.set_num_threads(threads)  # the last bits depend on it
        self._encoding, self._folder = encoding, Path(folder)
        self._autoencoder = autoencoder.to(resolve_device(device))
        self._write = encode_here(workers)

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Make the parts in `batch`. An error raised on purpose is handed over as words: Ray loses which it was."""
        numbers = [int(number) for number in batch["part"]]
        failed = ["", ""]
        try:
            self._write(self._encoding, self._autoencoder, self._folder, numbers, lambda samples: None)
        except SfumatoError as error:
            failed = [type(error).__name__, str(error)]
        samples = sum(len(self._encoding.spec.part(number)) for number in numbers)
        return {"samples": [samples], "error": failed[:1], "message": failed[1:]}


def encode_on_ray(*, actors: int, device: str = "auto", threads: int | None = None, workers: int = 2) -> WriteParts:
    """Have `actors` make the parts, of the cluster that RAY_ADDRESS names or of one started on this machine.

    With `device` "cuda" each asks the cluster for a GPU, else for `threads` cores (as many as torch uses here).
    `MissingExtra` without Ray.
    """

    def write(encoding: Encoding, autoencoder: Autoencoder, folder: Path, numbers: Sequence[int], count: Count) -> None:
        if not numbers:
            return
        cores = threads or torch.get_num_threads()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told what runs here
        ray, data = require("ray", extra="ray"), require("ray.data", extra="ray")
        if not ray.is_initialized():
            ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        made = data.from_items([{"part": number} for number in numbers], override_num_blocks=len(numbers)).map_batches(
            PartWriter,
            batch_size=1,
            concurrency=min(actors, len(numbers)),
            num_gpus=1 if device.startswith("cuda") else 0,
            num_cpus=0 if device.startswith("cuda") else cores,
            fn_constructor_args=(encoding, autoencoder.cpu(), str(folder.absolute()), device, cores, workers),
        )
        for row in made.iter_rows():
            if row["error"]:
                raise getattr(errors, str(row["error"]))(row["message"])
            count(int(row["samples"]))

    return write
