"""`Generation`: what a call of the pipeline made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from torch import Tensor

from sfumato.pipeline.provenance import Provenance
from sfumato.pipeline.request import Request
from sfumato.safety.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Generation:
    """What a call made: pictures, each with its resolved request, its provenance and the safety verdict on it.

    `latents` are the scaled latents (C, h, w) float32 that each was decoded from, on the model's device. Where they
    were all that was asked for, there are no `images`, `provenance` and `verdicts`. `model_calls` is how often the UNet
    was asked for each, `timings` are seconds by stage. A notebook shows the pictures.
    """

    images: tuple[Image.Image, ...]
    requests: tuple[Request, ...]
    provenance: tuple[Provenance, ...]
    verdicts: tuple[Verdict, ...]
    latents: tuple[Tensor, ...] = field(compare=False)
    model_calls: tuple[int, ...]
    timings: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        seeds = ", ".join(map(str, self.seeds[:4])) + ", …" * (len(self.seeds) > 4)
        return f"Generation(images={len(self.images)}, seeds=({seeds}), seconds={self.timings.get('total', 0.0):.1f})"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of each picture."""
        return tuple(request.seed for request in self.requests)

    def _repr_png_(self) -> bytes | None:
        import io

        from sfumato.pictures.contact_sheet import montage

        if not self.images:  # latents were asked for
            return None
        buffer = io.BytesIO()
        Image.fromarray(montage([np.asarray(image) for image in self.images])).save(buffer, "PNG")
        return buffer.getvalue()
