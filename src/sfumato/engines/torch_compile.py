"""The networks through torch.compile, block by block: blocks of one shape share their code, so that a UNet of sixteen
transformers costs the compilation of four. Shapes are static: another size of picture is compiled anew."""

from __future__ import annotations

import functools
from typing import TypeVar

import torch
import torch._dynamo as dynamo
from torch import nn

from sfumato.engines.shared_copy import shared_copy
from sfumato.models.autoencoder import PixelAttention
from sfumato.models.unet_layers import SpatialTransformer
from sfumato.nn.resnet import ResnetBlock

Network = TypeVar("Network", bound=nn.Module)

_REGIONS = (ResnetBlock, SpatialTransformer, PixelAttention)
_SHAPES = 256  # kinds of a block that are kept; v1 has fourteen of residual blocks for each size of picture


def compiled_copy(network: Network, *, backend: str = "inductor", mode: str | None = None) -> Network:
    """A copy of a network that shares its weights, and whose blocks are compiled when they are first called.

    The network itself stays as it is: other engines and hooks see no compiled code. `backend` and `mode` are
    torch.compile's.
    """
    # The whole process's: torch 2.11 has no such option of a single compilation.
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _SHAPES)
    copied = shared_copy(network)
    for block in copied.modules():
        if isinstance(block, _REGIONS):
            block.compile(fullgraph=True, dynamic=False, backend=backend, mode=mode)
    return copied


@functools.cache
def why_not(device: str) -> str:
    """The reason nothing can be compiled for a device here, "" where it can: one addition is tried."""
    try:
        torch.compile(_plus_one)(torch.zeros(4, device=device))
    except RuntimeError as error:  # of which every failure of torch.compile is one
        return f"torch.compile fails here ({_reason(error)}); it needs a C++ compiler, and Triton for a GPU"
    return ""


def _plus_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def _reason(error: RuntimeError) -> str:
    """The innermost error's first line."""
    inner = getattr(error, "inner_exception", error)
    return (str(inner).strip().splitlines() or [type(inner).__name__])[0][:200]
