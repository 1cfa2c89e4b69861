"""A worker without a model, for tests and for looking at the server: small pictures that depend on the request alone.

Run with the socket's number and the seconds a step is to take.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time

import numpy as np
from PIL import Image

from sfumato.errors import NumericalError
from sfumato.files import write_bytes
from sfumato.pictures.pixels import Pixels, pixels_sha256
from sfumato.pipeline.provenance import Provenance
from sfumato.pipeline.request import Request
from sfumato.pipeline.saving import encode_picture
from sfumato.progress import Cancellation
from sfumato.serve.workers.messages import Telling, Unit, work

SIDE = 8
CRASH = "make the worker crash"
FAIL = "make the picture fail"
"""Prompts for tests of what happens then."""


def pixels_of(request: Request) -> Pixels:
    """The picture (8, 8, 3) of a request: noise from a hash of it."""
    digest = hashlib.sha512(request.to_json().encode()).digest()
    return np.frombuffer(digest * 3, dtype=np.uint8).reshape(SIDE, SIDE, 3)


def main() -> None:
    """Be a worker."""
    seconds = float(sys.argv[2])

    def generate(unit: Unit, telling: Telling, cancellation: Cancellation) -> tuple[int, int]:
        pixels = pixels_of(unit.request)
        for step in range(unit.request.steps):
            cancellation.check()
            time.sleep(seconds)
            telling.step(step + 1, unit.request.steps, lambda: Image.fromarray(pixels))
        if unit.request.prompt == CRASH:
            os._exit(9)
        if unit.request.prompt == FAIL:
            raise NumericalError("NaN in the layer mid_block of nothing")
        write_bytes(unit.path, encode_picture(pixels, ".png", _provenance(unit.request, pixels)), overwrite=True)
        return SIDE, SIDE

    work(int(sys.argv[1]), generate)


def _provenance(request: Request, pixels: Pixels) -> Provenance:
    return Provenance(
        request=request.replace(width=request.width or SIDE, height=request.height or SIDE),
        width=SIDE,
        height=SIDE,
        pixels_sha256=pixels_sha256(pixels),
        model_name=request.model,
        model_sha256="0" * 64,
        engine="fake",
        device="none",
        dtype="none",
        threads=1,
        processor="none",
        torch="none",
        sfumato="none",
    )


if __name__ == "__main__":
    main()
