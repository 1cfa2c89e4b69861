"""Features of sets of pictures, computed once: a file is found again by the hashes of the pictures and the network."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.errors import InvalidRequest
from sfumato.files import write_bytes
from sfumato.pictures.pixels import Pixels, pixels_sha256
from sfumato.report.features.network import Features, Network

FEATURES = "features"
_BATCH = 16


def cached_features(
    folder: Path,
    pictures: Sequence[Pixels],
    network: Network,
    *,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> Features:
    """The network's features of the pictures, from `folder` where they are there already.

    `InvalidRequest` where the network answers with something that is not a number.
    """
    path = folder / FEATURES / f"{_key(pictures, network)}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"{path} is damaged ({error}): delete it, it will be made again") from error
    batches: list[Features] = []
    for start in range(0, len(pictures), _BATCH):
        batches.append(network.features(pictures[start : start + _BATCH]))
        on_pictures(len(pictures[start : start + _BATCH]))
    features = {space: np.concatenate([batch[space] for batch in batches]) for space in batches[0]}
    for space, rows in features.items():
        if not np.isfinite(rows).all():
            raise InvalidRequest(f"{network.identity.file} gives {space} features that are not numbers: is it damaged?")
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(features)
    np.savez(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue(), overwrite=True)
    return features


def pictures_sha256(pictures: Sequence[Pixels]) -> str:
    """A hash of the pixels of all, in their order."""
    lines = [f"{picture.shape[1]}x{picture.shape[0]} {pixels_sha256(picture)}\n" for picture in pictures]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _key(pictures: Sequence[Pixels], network: Network) -> str:
    identity = network.identity
    named = f"{identity.name} {identity.sha256} {identity.resize} {pictures_sha256(pictures)}"
    return hashlib.sha256(named.encode()).hexdigest()[:32]
