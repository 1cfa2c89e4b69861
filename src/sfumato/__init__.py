"""sfumato: Stable Diffusion v1, whole.

import sfumato
pipe = sfumato.load_pipeline("pocket")
pipe.generate("a red heart", seed=0).images[0].save("heart.png")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sfumato.version import __version__ as __version__

if TYPE_CHECKING:
    from sfumato.pipeline.generation import Generation
    from sfumato.pipeline.load_pipeline import load_pipeline
    from sfumato.pipeline.pipeline import Pipeline
    from sfumato.pipeline.provenance import Provenance
    from sfumato.pipeline.request import Request
    from sfumato.progress import Cancellation, Progress

__all__ = ["Cancellation", "Generation", "Pipeline", "Progress", "Provenance", "Request", "load_pipeline"]

# Loaded when first used: torch takes seconds, and most uses of the command line don't need it.
_HOMES = {
    "Cancellation": "sfumato.progress",
    "Generation": "sfumato.pipeline.generation",
    "Pipeline": "sfumato.pipeline.pipeline",
    "Progress": "sfumato.progress",
    "Provenance": "sfumato.pipeline.provenance",
    "Request": "sfumato.pipeline.request",
    "load_pipeline": "sfumato.pipeline.load_pipeline",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted((*__all__, "__version__"))
