"""What the diffusion model is trained on: posteriors of pictures, encoded before, with their captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from sfumato.data.moments import Moments, open_moments
from sfumato.data.transforms import Preparation
from sfumato.models.autoencoder import Autoencoder
from sfumato.train.encoding.encode_dataset import encoder_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSample:
    """The posterior of one picture, unscaled: mean and logvar (C, h, w); and captions, each true of it."""

    mean: Tensor
    logvar: Tensor
    captions: tuple[str, ...]


class LatentDataset(Protocol):
    """Samples numbered from 0, each a pure function of its number; may be read from any thread."""

    def __len__(self) -> int: ...

    def latents(self, index: int) -> LatentSample: ...


@dataclass(frozen=True, slots=True)
class StoredLatents:
    """What `encode_moments` made."""

    moments: Moments

    def __len__(self) -> int:
        return len(self.moments)

    def latents(self, index: int) -> LatentSample:
        """Views of the mapped file, float16."""
        part, row = self.moments.locate(index)
        mean, logvar = part.moments(row)
        return LatentSample(mean=mean, logvar=logvar, captions=part.captions(row))


def open_latents(folder: Path, autoencoder: Autoencoder, preparation: Preparation | None = None) -> StoredLatents:
    """The encoded pictures in a folder. `DataError` where another autoencoder made them, where they were prepared in
    another way, or where they aren't whole."""
    return StoredLatents(open_moments(folder, autoencoder=encoder_hash(autoencoder), preparation=preparation))
