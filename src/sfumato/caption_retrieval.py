"""A CLIP model as a judge: which of some captions belongs to a picture, and how often that is the right one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from sfumato.errors import InvalidRequest
from sfumato.modelfiles.model_parts import CLIP, read_part
from sfumato.models.clip import Clip
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.safety.checker import preprocess

_BATCH = 64

Prepare = Callable[[Image.Image, int], Tensor]
"""A picture and a side → normalised pixels (3, side, side)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retriever:
    """A CLIP model with its tokenizer, ready to compare pictures and captions on a CPU or `device`."""

    model: Clip = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)

    @classmethod
    def from_folder(cls, folder: Path, *, device: torch.device | None = None) -> Self:
        """Read transformers' layout of a `CLIPModel`: config.json, weights, and the tokenizer's files beside them.

        Raises `ModelNotFound`, `InvalidConfig` or `CheckpointError`.
        """
        model = read_part(folder, CLIP, device=device)
        return cls(model=model, tokenizer=Tokenizer.from_folder(folder))

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image], *, prepare: Prepare = preprocess) -> Tensor:
        """Embeddings of length 1, (N, D) on the CPU. `prepare` brings each picture to the model's size."""
        size, device = self.model.config.vision.image_size, self.model.logit_scale.device
        found = [
            self.model.embed_pictures(
                torch.stack([prepare(picture, size) for picture in pictures[i : i + _BATCH]]).to(device)
            ).cpu()
            for i in range(0, len(pictures), _BATCH)
        ]
        return torch.cat(found)

    @torch.inference_mode()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of length 1, (N, D) on the CPU. What doesn't fit into the model's window is cut off."""
        tokenizer = replace(self.tokenizer, max_length=self.model.config.text.positions)
        device = self.model.logit_scale.device
        found = [
            self.model.embed_captions(
                torch.tensor([tokenizer.window(caption) for caption in captions[i : i + _BATCH]], device=device)
            ).cpu()
            for i in range(0, len(captions), _BATCH)
        ]
        return torch.cat(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """Shares of pictures whose own caption is the first, or among the first five, of `candidates` captions."""

    top1: float
    top5: float
    candidates: int


def retrieval(pictures: Tensor, captions: Tensor, *, candidates: int = 100, seed: int = 0) -> Retrieval:
    """How well N pictures find their captions: embeddings (N, D) each, the caption of each picture in its row.

    Every picture chooses among its own caption and others drawn from the rest (all of them where there are fewer); a
    tie with another caption counts against it. Chance is 1 / candidates. Raises `InvalidRequest` for fewer than two
    pictures, or not as many captions.
    """
    count = len(pictures)
    if count < 2 or len(captions) != count:
        raise InvalidRequest(f"retrieval needs as many captions as pictures, 2 or more: {count} and {len(captions)}")
    among = min(candidates, count)
    similar = pictures @ captions.T  # (N, N)
    generator = torch.Generator().manual_seed(seed)
    ranks = []
    for i in range(count):
        others = torch.randperm(count - 1, generator=generator)[: among - 1]
        others = others + (others >= i)
        ranks.append(int((similar[i, others] >= similar[i, i]).sum()))
    found = torch.tensor(ranks)
    return Retrieval(top1=float((found < 1).double().mean()), top5=float((found < 5).double().mean()), candidates=among)
