"""What scores know of a network: which spaces its features live in, and which file it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sfumato.modelfiles.hash_cache import weights_hash
from sfumato.pictures.pixels import Pixels

Features = Mapping[str, NDArray[np.float32]]
"""Rows (N, D), one a picture, for each space of a network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What decides a network's answers: its name, its weights, and how pictures are brought to its size."""

    name: str
    file: str
    sha256: str
    resize: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


class Network(Protocol):
    """Turns pictures into features, each picture for itself."""

    @property
    def identity(self) -> Identity: ...

    def features(self, pictures: Sequence[Pixels]) -> Features:
        """Pictures (H, W, 3) uint8 of any sizes → rows of features."""
        ...


def identity(name: str, path: Path, *, resize: str) -> Identity:
    """The identity of a network from `path`, a file or a folder of files."""
    return Identity(name=name, file=path.name, sha256=weights_hash(path), resize=resize)
