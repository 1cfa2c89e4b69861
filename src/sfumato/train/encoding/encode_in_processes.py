"""Encode in several processes of this machine: where one can't draw and prepare pictures as fast as the device encodes.

Each has an autoencoder of its own on the same device, and makes whole parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path

import torch

from sfumato.data.process_pool import process_pool
from sfumato.models.autoencoder import Autoencoder
from sfumato.train.encoding.encode_dataset import Count, Encoding, WriteParts, encode_here


def encode_in_processes(count: int) -> WriteParts:
    """Have `count` processes make the parts, on the autoencoder's device. The data set must survive pickling."""

    def write(encoding: Encoding, autoencoder: Autoencoder, folder: Path, numbers: Sequence[int], tell: Count) -> None:
        if min(count, len(numbers)) < 2:
            encode_here(1)(encoding, autoencoder, folder, numbers, tell)
            return
        device = next(autoencoder.parameters()).device
        processes = min(count, len(numbers))
        try:
            with process_pool(processes, _receive, encoding, autoencoder.cpu(), folder, device) as pool:
                for done in as_completed([pool.submit(_write, number) for number in numbers]):
                    tell(done.result())
        finally:
            autoencoder.to(device)

    return write


_received: list[tuple[Encoding, Autoencoder, Path]] = []  # what this process is to work on


def _receive(encoding: Encoding, autoencoder: Autoencoder, folder: Path, device: torch.device) -> None:
    torch.set_num_threads(1)
    _received[:] = [(encoding, autoencoder.to(device), folder)]


def _write(number: int) -> int:
    """Make one part: how many samples it has."""
    encoding, autoencoder, folder = _received[0]
    encode_here(1)(encoding, autoencoder, folder, [number], lambda samples: None)
    return len(encoding.spec.part(number))
