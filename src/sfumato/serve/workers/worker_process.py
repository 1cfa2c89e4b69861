"""The process that owns the device: loads models and generates, a picture at a time.

Run with the socket's number and, as JSON, how models are loaded. The only module of the server that imports torch.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from sfumato.errors import InvalidRequest
from sfumato.files import write_bytes
from sfumato.modelfiles.load_options import LoadOptions
from sfumato.pipeline.load_pipeline import load_with
from sfumato.pipeline.pipeline import Pipeline
from sfumato.pipeline.saving import encode_picture
from sfumato.progress import Cancellation, Progress
from sfumato.serve.workers.messages import Telling, Unit, work

_NICENESS = 5  # the front answers first


class Generator:
    """Makes units' pictures, with the model of the last one still in memory."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._options = LoadOptions(**told["options"])
        self._safety, self._watermark = told["safety"], told["watermark"]
        self._loaded: tuple[str, Pipeline] | None = None

    def __call__(self, unit: Unit, telling: Telling, cancellation: Cancellation) -> tuple[int, int]:
        """The picture's width and height, once its file is whole. Raises `Cancelled`, and as `generate` does."""

        def on_progress(event: Progress) -> None:
            if event.stage == "denoise":
                telling.step(event.step, event.steps, event.preview)

        pipeline = self._pipeline(unit.request.model)
        cancellation.check()
        made = pipeline.generate(unit.request, on_progress=on_progress, cancellation=cancellation)
        image = made.images[0]
        write_bytes(unit.path, encode_picture(np.asarray(image), ".png", made.provenance[0]), overwrite=True)
        return image.size

    def _pipeline(self, model: str) -> Pipeline:
        if self._loaded is None or self._loaded[0] != model:
            self._loaded = None
            gc.collect()
            self._loaded = model, load_with(self._options, model, safety=self._safety, watermark=self._watermark)
        return self._loaded[1]


def main() -> None:
    """Be a worker."""
    os.nice(_NICENESS)
    try:
        generate = Generator(json.loads(sys.argv[2]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"how models are loaded can't be read: {error}") from error
    work(int(sys.argv[1]), generate)


if __name__ == "__main__":
    main()
