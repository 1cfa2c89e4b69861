"""What the diffusion model is trained on: posteriors of pictures, encoded before, with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from sfumato.data.moments import Moments, open_moments
from sfumato.data.transforms import Preparation
from sfumato.errors import InvalidConfig
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
    """The latents that `encode_moments` made."""

    moments: Moments

    def __len__(self) -> int:
        return len(self.moments)

    def latents(self, index: int) -> LatentSample:
        """Views of the mapped file, float16."""
        part, row = self.moments.locate(index)
        mean, logvar = part.moments(row)
        return LatentSample(mean=mean, logvar=logvar, captions=part.captions(row))


@dataclass(frozen=True, slots=True)
class SomeLatents:
    """Some samples of a latent data set, in the order given."""

    latents_of: LatentDataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def latents(self, index: int) -> LatentSample:
        return self.latents_of.latents(self.indices[index])


@dataclass(frozen=True, slots=True)
class BucketedLatents:
    """Latent data sets of one shape each, numbered through."""

    parts: Sequence[LatentDataset]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def latents(self, index: int) -> LatentSample:
        for part in self.parts:
            if index < len(part):
                return part.latents(index)
            index -= len(part)
        raise IndexError(index)


def bucket_sizes(dataset: LatentDataset) -> tuple[int, ...]:
    """How many samples each shape has, in the order of their numbers. `InvalidConfig` for latents of one shape."""
    if not isinstance(dataset, BucketedLatents):
        raise InvalidConfig("buckets need latents that were encoded in several shapes: set buckets to false")
    return tuple(map(len, dataset.parts))


def open_latents(folder: Path, autoencoder: Autoencoder, preparation: Preparation | None = None) -> StoredLatents:
    """The encoded pictures in a folder. `DataError` where another autoencoder made them, where they were prepared in
    another way, or where they aren't whole."""
    return StoredLatents(open_moments(folder, autoencoder=encoder_hash(autoencoder), preparation=preparation))
