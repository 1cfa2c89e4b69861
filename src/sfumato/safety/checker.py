"""The safety checker published with Stable Diffusion v1: a picture's CLIP embedding against 17 unwanted concepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from sfumato.errors import CheckpointError, NumericalError
from sfumato.safety.verdict import Verdict, judge
from sfumato.weights.checkpoint import Checkpoint

NAME = "stable-diffusion-v1"

# Added to every score once one of the three "special care" concepts was found.
SPECIAL_CARE = np.float32(0.01)

# openai/CLIP: mean and spread of its training pictures, RGB from 0 to 1.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Concepts:
    """Embeddings (N, D) of what to find, with the cosine each must exceed (N,), all float32 on the CPU.

    The names are the file's: its `…_weights` are the thresholds. Published: 17 concepts, 3 special ones, D = 768. Other
    shapes raise `CheckpointError`.
    """

    concept_embeds: Tensor
    concept_embeds_weights: Tensor
    special_care_embeds: Tensor
    special_care_embeds_weights: Tensor

    def __post_init__(self) -> None:
        width = self.concept_embeds.shape[-1]
        for name in ("concept_embeds", "special_care_embeds"):
            embeds, thresholds = getattr(self, name), getattr(self, f"{name}_weights")
            if embeds.ndim != 2 or embeds.shape[1] != width or thresholds.shape != embeds.shape[:1]:
                shapes = f"{tuple(embeds.shape)} and {tuple(thresholds.shape)}"
                raise CheckpointError(f"safety checker: {name} and its weights have shapes {shapes} that don't fit")

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the concepts from an open `safety_checker` weight file. Raises `CheckpointError` for what is missing."""
        return cls(**{field.name: checkpoint.read(field.name, torch.float32) for field in fields(cls)})


class SafetyChecker:
    """Judges pictures as diffusers' `StableDiffusionSafetyChecker` does. A `Checker`.

    `image_embeds` is CLIP's image tower with its projection: pixels (1, 3, S, S) as `preprocess` makes them, float32
    on the CPU, to embeddings (1, D) of any dtype and place. Each picture goes through it alone, so that its scores
    don't depend on its neighbours.
    """

    def __init__(self, concepts: Concepts, image_embeds: Callable[[Tensor], Tensor], *, image_size: int = 224) -> None:
        self.concepts = concepts
        self.image_embeds = image_embeds
        self.image_size = image_size

    def __call__(self, images: Sequence[Image.Image]) -> list[Verdict]:
        """Judge pictures in order. Raises `NumericalError` where a score is no number, and would pass for safe."""
        return [self._judge(image) for image in images]

    @torch.inference_mode()
    def _judge(self, image: Image.Image) -> Verdict:
        embedding = self.image_embeds(preprocess(image, self.image_size)[None])
        return verdict(embedding[0].float().cpu(), self.concepts)


def verdict(embedding: Tensor, concepts: Concepts) -> Verdict:
    """Judge one embedding (D,).

    A score is round(cosine − threshold + a, 3); above 0 it is a hit. a = 0, and 0.01 from the first special hit on,
    for the special concepts that follow and for all 17 others. Only those 17 flag a picture. In float32 throughout,
    as diffusers (stable_diffusion/safety_checker.py) computes it. Raises `NumericalError` where a score is not finite.
    """
    adjustment = np.float32(0)
    scores: dict[str, np.float32] = {}
    special = _cosines(embedding, concepts.special_care_embeds) - concepts.special_care_embeds_weights.numpy()
    for index, excess in enumerate(special):
        scores[f"special_{index}"] = np.round(excess + adjustment, 3)
        if scores[f"special_{index}"] > 0:
            adjustment = SPECIAL_CARE
    excesses = _cosines(embedding, concepts.concept_embeds) - concepts.concept_embeds_weights.numpy()
    found = {f"concept_{index}": np.round(excess + adjustment, 3) for index, excess in enumerate(excesses)}
    scores |= found
    if not all(map(np.isfinite, scores.values())):
        raise NumericalError("the safety checker's scores are not numbers: its weights or the picture hold NaN")
    flagged_by = tuple(name for name, score in found.items() if score > 0)
    return judge(NAME, {name: float(score) for name, score in scores.items()}, flagged_by)


def preprocess(image: Image.Image, size: int = 224) -> Tensor:
    """A picture as CLIP reads it, (3, size, size): the shorter side resized to `size` (bicubic, by Pillow), the
    middle cut out, scaled by mean and spread. Equal to transformers' `CLIPImageProcessor` (its Pillow version).
    """
    image = image.convert("RGB")
    short, long = sorted(image.size)
    resized = {short: size, long: int(size * long / short)}
    image = image.resize((resized[image.width], resized[image.height]), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))  # (size, size, 3)
    # Scaled in float64, then rounded, as the reference does.
    scaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(((scaled - MEAN) / STD).transpose(2, 0, 1)))


def _cosines(embedding: Tensor, others: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    cosines: np.ndarray[tuple[int], np.dtype[np.float32]] = (normalize(embedding[None]) @ normalize(others).T)[
        0
    ].numpy()
    return cosines
