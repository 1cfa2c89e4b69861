"""The model that is measured: v1-4's shapes with random numbers, or one from the library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sfumato.bench.bench_plan import RANDOM_V1
from sfumato.modelfiles.model_library import resolve
from sfumato.user_cache import cache_folder


def model_folder(name: str, *, on_turn: Callable[[str], None] = lambda _: None) -> Path:
    """Find where the model lies that `name` means to a plan. The random one is made once (4.3 GB) and kept in the
    user's cache. Raises as `resolve` and `random_model` do.
    """
    if name != RANDOM_V1:
        return resolve(name, offline=True).path
    from sfumato.bench.random_model import random_model

    folder = random_folder()
    if not folder.is_dir():
        on_turn(f"writing a random model of v1-4's shapes to {folder}, once")
    return random_model(folder)


def random_folder() -> Path:
    """The folder in which the random model is kept."""
    return cache_folder() / "bench" / "random-v1"
