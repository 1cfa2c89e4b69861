"""A state dict that looks like an opened checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.nn.empty import empty_modules
from sfumato.weights.mapper import Layout, fill, match


class InMemory:
    """What `sfumato.weights.mapper` needs of a `Checkpoint`, over tensors in memory."""

    path = Path("in memory")

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def read(self, name: str, dtype: torch.dtype | None = None, *, aligned: bool = False) -> Tensor:
        return self.tensors[name].clone().to(dtype or self.tensors[name].dtype)


def load(build: type[nn.Module], config: object, layout: Layout, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build on the meta device and fill strictly, as the pipeline does."""
    with empty_modules():
        module = build(config)
    checkpoint = InMemory(tensors)
    fill(module, match(module, layout, checkpoint), checkpoint)
    return module.eval().requires_grad_(False)
