"""What others measured: pictures a second of Stable Diffusion's training, to say what a plan would take.

MosaicML (2023), "Training Stable Diffusion from Scratch for <$50k": eight A100s train Stable Diffusion 2's UNet, whose
size and work are v1's, on latents encoded before, 1,100 pictures a second of 256 pixels and 290 of 512.
"""

from __future__ import annotations

from collections.abc import Mapping

SOURCE = "MosaicML 2023, 8 A100s, latents encoded before"
A100_IMAGES_PER_SECOND: Mapping[int, float] = {256: 1100 / 8, 512: 290 / 8}
"""Of one A100, by the pictures' side."""

CARD_A100_HOURS = 150_000
"""What the v1 card says that the training took (`facts`: A100 PCIe 40GB)."""


def a100_hours(samples: int, resolution: int) -> float | None:
    """Device hours for so many pictures, None for a size nobody measured."""
    rate = A100_IMAGES_PER_SECOND.get(resolution)
    return None if rate is None else samples / rate / 3600.0
