"""Training: one loop, the tasks it runs, and the state that survives a crash.

from sfumato.train import KINDS, train_diffusion
config = KINDS["diffusion"].starting_configs["small"]
train_diffusion(config, Path("pictures"), Path("painter"), autoencoder="pocket", tokenizer="pocket")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato.train.kinds import KINDS, export_run, read_run
    from sfumato.train.runs.train_autoencoder import train_autoencoder
    from sfumato.train.runs.train_clip import train_clip
    from sfumato.train.runs.train_diffusion import train_diffusion

__all__ = ["KINDS", "export_run", "read_run", "train_autoencoder", "train_clip", "train_diffusion"]


def __getattr__(name: str) -> object:
    if name not in __all__:  # loaded when first used: torch takes seconds
        raise AttributeError(f"module 'sfumato.train' has no attribute {name!r}")
    home = f"runs.{name}" if name.startswith("train_") else "kinds"
    return getattr(importlib.import_module(f"sfumato.train.{home}"), name)
