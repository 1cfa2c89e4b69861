"""A model as a folder in diffusers' layout: which files there are, and what its index says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CLASSES: Mapping[str, list[str]] = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_CHECKER: Mapping[str, list[str]] = {
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
}
CHECKER_PARTS = tuple(_CHECKER)


GUIDANCE_ENTRY = "_guidance_scale"
"""Where `model_index.json` says which scale the makers recommend; other programs pass over names that begin so."""


def model_index(
    scheduler: Mapping[str, Any],
    *,
    checker: frozenset[str] = frozenset(),
    requires_safety_checker: bool = False,
    guidance_scale: float | None = None,
) -> dict[str, Any]:
    """Make `model_index.json` of a folder with this `scheduler_config.json` and, of `CHECKER_PARTS`, those in
    `checker`."""
    recommended = {} if guidance_scale is None else {GUIDANCE_ENTRY: guidance_scale}
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.12.0",
        **recommended,
        "scheduler": ["diffusers", scheduler.get("_class_name", "PNDMScheduler")],
        **_CLASSES,
        **{name: classes if name in checker else [None, None] for name, classes in _CHECKER.items()},
        "requires_safety_checker": requires_safety_checker,
    }
