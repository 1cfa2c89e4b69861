"""The safety checker that comes with a model's folder."""

from __future__ import annotations

from pathlib import Path

import torch

from sfumato.json_files import read_object
from sfumato.modelfiles.open_model import component_weights, naming
from sfumato.models.clip_vision import SAFETY_CHECKER, ClipVision, ClipVisionConfig
from sfumato.nn.empty import empty_modules
from sfumato.safety.checker import Concepts, SafetyChecker
from sfumato.weights.checkpoint import open_checkpoint
from sfumato.weights.mapper import fill, match


def load_safety_checker(folder: Path, *, device: torch.device, dtype: torch.dtype) -> SafetyChecker:
    """Read `safety_checker/` of a diffusers folder. Raises `CheckpointError` or `InvalidConfig`."""
    path = folder / "config.json"
    with naming(path):
        config = ClipVisionConfig.from_published(read_object(path))
    with empty_modules():
        tower = ClipVision(config).eval().requires_grad_(False)
    with open_checkpoint(component_weights(folder)) as checkpoint:
        fill(tower, match(tower, SAFETY_CHECKER, checkpoint), checkpoint, dtype=dtype, device=device)
        concepts = Concepts.from_checkpoint(checkpoint)
    return SafetyChecker(concepts, lambda pixels: tower(pixels.to(device, dtype)), image_size=config.image_size)
