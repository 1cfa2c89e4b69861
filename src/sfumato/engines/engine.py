"""`Engine`: the two networks of a model as something that runs them, and the name that is recorded with pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from sfumato.engines.kernels import Kernels
from sfumato.models.autoencoder import Autoencoder, Posterior
from sfumato.models.unet import UNet
from sfumato.models.unet_inputs import UNetInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How the networks are executed: `unet` makes the answers, (k·B, C, h, w) of the model's dtype; `encode` and
    `decode` take and return what the autoencoder's methods do.

    `name` is what runs, which may be another engine than was asked for; asking for it gives the same again.
    What of `UNetInputs` only some engines take: `guides` says so for `factors`, which make the answer a guided one,
    (B, C, h, w) float32; `shortens` for `shortcuts`, `adapts` for `residuals`.
    `kernels` are what it is made of, where that is `Kernels`; `tiling` is how large pictures pass the autoencoder.
    """

    name: str
    unet: Callable[[UNetInputs], Tensor] = field(repr=False)
    encode: Callable[[Tensor], Posterior] = field(repr=False)
    decode: Callable[[Tensor], Tensor] = field(repr=False)
    guides: bool = False
    shortens: bool = False
    adapts: bool = False
    kernels: Kernels | None = field(default=None, repr=False)
    tiling: str = "none"


def eager(unet: UNet, autoencoder: Autoencoder) -> Engine:
    """The engine that runs the modules themselves."""
    return Engine(
        name="eager",
        unet=called_as_written(unet),
        encode=autoencoder.encode,
        decode=autoencoder.decode,
        shortens=True,
        adapts=True,
    )


def called_as_written(unet: UNet) -> Callable[[UNetInputs], Tensor]:
    """`Engine.unet` of a UNet's own forward, or of a copy's: (k·B, C, h, w) in its dtype."""
    bias = unet.conv_in.bias  # has the dtype to compute in; weights may be as their file stores them
    assert bias is not None
    dtype = bias.dtype

    def run(inputs: UNetInputs) -> Tensor:
        """Answer in rows (k·B, C, h, w)."""
        answer: Tensor = unet(*inputs.rows(dtype), inputs.residuals, inputs.shortcuts)
        return answer

    return run
