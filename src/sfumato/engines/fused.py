"""Networks whose GroupNorms, with the SiLU behind most of them, are one Triton kernel on channels-last maps."""

from __future__ import annotations

import functools
import subprocess
from typing import TypeVar

import torch
from torch import Tensor, nn

from sfumato.engines.shared_copy import shared_copy
from sfumato.nn.norm import GroupNormSiLU

Network = TypeVar("Network", bound=nn.Module)


class FusedGroupNorm(nn.Module):
    """Compute what a `GroupNorm` or `GroupNormSiLU` does, with its weights: (B, C, H, W), which comes out channels
    last."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, isinstance(norm, GroupNormSiLU)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """Norm x (B, C, H, W)."""
        from sfumato.engines.triton_norm import group_norm

        with torch.cuda.device(x.get_device()):  # Triton launches on the current one; -1, the CPU's, is none
            return group_norm(x, self.weight, self.bias, groups=self.groups, eps=self.eps, silu=self.silu)


def fused_copy(network: Network) -> Network:
    """A copy of a network that shares its weights and whose GroupNorms are fused. The network itself stays as it is."""
    copied = shared_copy(network)
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, FusedGroupNorm(child))
    return copied


@functools.cache
def why_not(device: str) -> str:
    """The reason nothing can be fused on a device here, "" where it can: a small norm is tried."""
    try:
        import triton
    except ImportError:
        return "the package triton isn't installed"
    try:
        from triton.errors import TritonError
    except ImportError:
        return f"triton {triton.__version__} has no triton.errors: install the version that torch's build brings"
    norm = FusedGroupNorm(GroupNormSiLU(1, 4)).to(device)
    try:
        norm(torch.zeros(1, 4, 2, 2, device=device))
    except (TritonError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return f"Triton fails here: {(str(error).strip().splitlines() or [type(error).__name__])[0][:200]}"
    return ""
