"""How large pictures pass the autoencoder: whole, in strips, or in blended tiles; by a fixed rule or as it is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from sfumato.engines.blended_tiles import blended_decode, blended_encode, needs_tiles
from sfumato.engines.engine import Engine
from sfumato.engines.names import TILINGS
from sfumato.engines.strip_autoencoder import StripAutoencoder
from sfumato.engines.torch_kernels import TorchKernels
from sfumato.errors import InvalidRequest
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig, Posterior

# `auto` by the number of pixels, never by the memory there is, so that a picture doesn't depend on it: whole up to
# here, as everything up to the sizes v1 is made for, in strips up to there, then in strips that cost time.
_WHOLE, _STRIPS = 768 * 768, 1536 * 1536


def tiled(engine: Engine, autoencoder: Autoencoder, tiling: str) -> Engine:
    """The engine with an autoencoder in this tiling. Raises `InvalidRequest` for a name that is none of `TILINGS`."""
    if tiling not in TILINGS:
        raise InvalidRequest(f"vae_tiling {tiling!r} is unknown: use {', '.join(TILINGS)}", field="vae_tiling")
    config, kernels = autoencoder.config, engine.kernels or TorchKernels()
    strips, frugal = (StripAutoencoder(autoencoder, kernels, frugal=frugal) for frugal in (False, True))
    encoders: Mapping[str, Callable[[Tensor], Posterior]] = {
        "none": engine.encode,
        "exact": strips.encode,
        "frugal": frugal.encode,
        "blend": lambda images: blended_encode(engine.encode, images, config),
    }
    decoders: Mapping[str, Callable[[Tensor], Tensor]] = {
        "none": engine.decode,
        "exact": strips.decode,
        "frugal": frugal.decode,
        "blend": lambda latents: blended_decode(engine.decode, latents, config),
    }

    def encode(images: Tensor) -> Posterior:
        """Pixels (B, 3, H, W) → the posterior, in tiles or whole."""
        return encoders[tiling_of(tiling, images.shape[2], images.shape[3], config)](images)

    def decode(latents: Tensor) -> Tensor:
        """Unscaled latents (B, C, h, w) → pixels (B, 3, H, W), in tiles or whole."""
        height, width = (side * config.factor for side in latents.shape[2:])
        return decoders[tiling_of(tiling, height, width, config)](latents)

    return dataclasses.replace(engine, encode=encode, decode=decode, tiling=tiling)


def tiling_of(tiling: str, height: int, width: int, config: AutoencoderConfig) -> str:
    """What a tiling comes to for a picture of this many pixels: "none", "exact", "frugal" or "blend"."""
    if tiling == "auto":
        pixels = height * width
        return "none" if pixels <= _WHOLE else "exact" if pixels <= _STRIPS else "frugal"
    if tiling == "blend" and not needs_tiles(height, width, config):
        return "none"
    return tiling
