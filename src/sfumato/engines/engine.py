"""`Engine`: the two networks of a model as something that runs them, and the name that is recorded with pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from sfumato.engines.kernels import Kernels
from sfumato.engines.shortcuts import Shortcuts, approximate
from sfumato.models.autoencoder import Autoencoder, Posterior
from sfumato.models.unet import UNet


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """`denoise`, `encode` and `decode` take and return what `UNet.forward` and the autoencoder's methods do.

    `name` is what runs, which may be another engine than was asked for; asking for it gives the same again.
    `guided` is `denoise` with the guidance around it, None for an engine that does no more than `denoise`: x_in
    (B, C, h, w) float32, t, the conditions' contexts one after another (k·B, T, C), and the k − 1 factors of
    `diffusion.guidance.combined` → (B, C, h, w) float32. Nobody may write to a context while the same tensor is given.
    `approximate` is `denoise` with shortcuts; None for an engine that can't leave anything out. `kernels` are what it
    is made of, where that is `Kernels`; `tiling` is how large pictures pass the autoencoder.
    """

    name: str
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor] = field(repr=False)
    encode: Callable[[Tensor], Posterior] = field(repr=False)
    decode: Callable[[Tensor], Tensor] = field(repr=False)
    guided: Callable[[Tensor, float, Tensor, Sequence[float]], Tensor] | None = field(default=None, repr=False)
    approximate: Callable[[Tensor, Tensor, Tensor, Shortcuts], Tensor] | None = field(default=None, repr=False)
    kernels: Kernels | None = field(default=None, repr=False)
    tiling: str = "none"


def eager(unet: UNet, autoencoder: Autoencoder) -> Engine:
    """The modules themselves."""
    return Engine(
        name="eager",
        denoise=unet,
        encode=autoencoder.encode,
        decode=autoencoder.decode,
        approximate=partial(approximate, unet),
    )
