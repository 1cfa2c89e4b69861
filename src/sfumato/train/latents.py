"""What the diffusion model is trained on: posteriors of pictures, encoded before, with their captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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
