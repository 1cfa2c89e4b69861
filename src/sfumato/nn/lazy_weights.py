"""Layers whose weights stay as a file stores them, in half precision or not, and are widened while the layer runs.

Widening loses nothing, so the numbers are those of a layer that was widened when it was loaded. Layers can be told to
give the pages of their file back after each run: then the weights of a whole model are never in memory together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ALIGNMENT = 64  # bytes on which torch's own allocations begin, and on which its products' rounding depends


class Pages(Protocol):
    """The memory of a mapped file behind a weight."""

    def release(self) -> None:
        """Give the bytes back to the system; they are read from the file again when they are needed."""
        ...


class StoredLinear(nn.Linear):
    """`nn.Linear` with a weight of any floating dtype."""

    pages: Pages | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name for it
        """(…, in) → (…, out), in the input's dtype."""
        out: Tensor = F.linear(input, _widened(self.weight, input.dtype), self.bias)
        done_with(self)
        return out


class StoredConv2d(nn.Conv2d):
    """`nn.Conv2d` with a weight of any floating dtype."""

    pages: Pages | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(B, C, H, W) → (B, N, H', W'), in the input's dtype."""
        out: Tensor = self._conv_forward(input, _widened(self.weight, input.dtype), self.bias)
        done_with(self)
        return out


class StoredEmbedding(nn.Embedding):
    """`nn.Embedding` whose rows are widened when they are looked up."""

    pages: Pages | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(…,) → (…, width) in float32."""
        out = super().forward(input).float()
        done_with(self)
        return out


STORED: dict[type[nn.Module], type[StoredLinear | StoredConv2d | StoredEmbedding]] = {
    nn.Linear: StoredLinear,
    nn.Conv2d: StoredConv2d,
    nn.Embedding: StoredEmbedding,
}

_PLAIN: dict[type[nn.Module], Any] = {stored: plain for plain, stored in STORED.items()}


def store(layer: nn.Module, weight: Tensor, pages: Pages) -> None:
    """Make a layer of one of the `STORED` kinds one that widens `weight`, of its own weight's shape, in place: whoever
    holds the layer keeps it."""
    layer.__class__ = STORED[type(layer)]
    layer.weight, layer.pages = nn.Parameter(weight, requires_grad=False), pages  # type: ignore[assignment]


def stored_layers(module: nn.Module) -> Iterator[StoredLinear | StoredConv2d | StoredEmbedding]:
    """The layers of a module whose weights are as their file stores them."""
    for layer in module.modules():
        if isinstance(layer, StoredLinear | StoredConv2d | StoredEmbedding):
            yield layer


def keep(module: nn.Module) -> None:
    """Let the stored layers of a module keep their pages from run to run."""
    for layer in stored_layers(module):
        layer.pages = None


def bytes_held(module: nn.Module, *, widened: bool) -> int:
    """What the weights of the stored layers come to in memory: as they are, or in float32."""
    weights = (layer.weight for layer in stored_layers(module))
    return sum(weight.numel() * (4 if widened else weight.itemsize) for weight in weights)


def bytes_widened(module: nn.Module) -> int:
    """Bytes that `widen` will take."""
    copied = (layer.weight for layer in stored_layers(module) if not _as_torch_has_it(layer.weight))
    return sum(4 * weight.numel() for weight in copied)


def widen(module: nn.Module) -> None:
    """Turn the stored layers of a module back into plain float32 ones, for what can't run them."""
    for layer in stored_layers(module):
        weight = _widened(layer.weight, torch.float32)
        done_with(layer)
        layer.weight, layer.pages = nn.Parameter(weight, requires_grad=False), None
        layer.__class__ = _PLAIN[type(layer)]


def done_with(layer: nn.Module) -> None:
    """Told after a layer has run: a stored one gives its pages back, unless it is to keep them."""
    pages: Pages | None = getattr(layer, "pages", None)
    if pages is not None:
        pages.release()


def _widened(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as torch would have it in memory; itself where it is so."""
    return weight.to(dtype, copy=not _as_torch_has_it(weight))


def _as_torch_has_it(weight: Tensor) -> bool:
    return weight.dtype is torch.float32 and weight.data_ptr() % _ALIGNMENT == 0
