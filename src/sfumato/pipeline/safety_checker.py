"""The safety checker that comes with a model's folder."""

from __future__ import annotations

from pathlib import Path

import torch

from sfumato.modelfiles.model_parts import SAFETY_CHECKER, open_part
from sfumato.safety.checker import Concepts, SafetyChecker


def load_safety_checker(folder: Path, *, device: torch.device, dtype: torch.dtype) -> SafetyChecker:
    """Read `safety_checker/` of a diffusers folder. Raises `CheckpointError` or `InvalidConfig`."""
    with open_part(folder, SAFETY_CHECKER) as part:
        tower = part.load(dtype=dtype, device=device)
        concepts = Concepts.from_checkpoint(part.checkpoint)
    return SafetyChecker(concepts, lambda pixels: tower(pixels.to(device, dtype)), image_size=tower.config.image_size)
