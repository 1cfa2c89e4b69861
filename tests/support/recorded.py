"""A provenance record for tests that are about files, not about how the picture was made."""

from __future__ import annotations

import dataclasses

from sfumato.pipeline.provenance import Provenance
from sfumato.pipeline.request import Request


def record(request: Request, *, width: int, height: int, **changes: object) -> Provenance:
    """A record of `request` with some machine's values; `changes` are further fields."""
    made = Provenance(
        request=request,
        width=width,
        height=height,
        pixels_sha256="0" * 64,
        model_name="pocket",
        model_sha256="0123456789abcdef" * 4,
        engine="eager",
        device="cpu",
        dtype="float32",
        threads=2,
        processor="AVX2",
        torch="2.13.0",
        sfumato="0.1.0",
    )
    return dataclasses.replace(made, **changes)
