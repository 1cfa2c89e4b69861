"""Inception v3 as TensorFlow published it in 2015, up to its pooled features: the network that FID is defined by.

Names of weights are torchvision's, as in the converted files of pytorch-fid and torch-fidelity (both hold the same
numbers). It differs from torchvision's network in its average pools, which leave the border out, and in the last
block's pool, which is a maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.empty import empty_modules
from sfumato.weights.checkpoint import open_checkpoint
from sfumato.weights.mapper import Layout, fill, match

SIDE = 299
FEATURES = 2048
_EPS = 1e-3


class NormedConv(nn.Module):
    """Convolution, batch norm with fixed statistics, ReLU."""

    def __init__(
        self, channels: int, out_channels: int, kernel: tuple[int, int], *, stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.bn = FixedNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out_channels, H', W')"""
        return F.relu(self.bn(self.conv(x)))


class FixedNorm(nn.Module):
    """Batch norm that only ever uses its stored statistics."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)"""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=_EPS)


Pool = Callable[[Tensor], Tensor]


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


@dataclass(frozen=True, slots=True)
class _Conv:
    """A convolution of a branch: name, channels out, kernel. With stride 2 it isn't padded."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


# A branch is a chain; where it ends in a tuple, those run side by side on what came before.
_Branch = tuple[_Conv | tuple[_Conv, _Conv], ...]


@dataclass(frozen=True, slots=True)
class _Block:
    """Branches, concatenated with the pooled input, which goes through `branch_pool` to so many channels first
    (0: as it is)."""

    branches: tuple[_Branch, ...]
    pool: Pool
    pooled: int


def _block_a(pooled: int) -> _Block:
    return _Block(
        (
            (_Conv("branch1x1", 64),),
            (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5))),
            (
                _Conv("branch3x3dbl_1", 64),
                _Conv("branch3x3dbl_2", 96, (3, 3)),
                _Conv("branch3x3dbl_3", 96, (3, 3)),
            ),
        ),
        _average,
        pooled,
    )


def _block_c(inside: int) -> _Block:
    along, down = (1, 7), (7, 1)
    return _Block(
        (
            (_Conv("branch1x1", 192),),
            (_Conv("branch7x7_1", inside), _Conv("branch7x7_2", inside, along), _Conv("branch7x7_3", 192, down)),
            (
                _Conv("branch7x7dbl_1", inside),
                _Conv("branch7x7dbl_2", inside, down),
                _Conv("branch7x7dbl_3", inside, along),
                _Conv("branch7x7dbl_4", inside, down),
                _Conv("branch7x7dbl_5", 192, along),
            ),
        ),
        _average,
        192,
    )


def _block_e(pool: Pool) -> _Block:
    along, down = (1, 3), (3, 1)
    return _Block(
        (
            (_Conv("branch1x1", 320),),
            (_Conv("branch3x3_1", 384), (_Conv("branch3x3_2a", 384, along), _Conv("branch3x3_2b", 384, down))),
            (
                _Conv("branch3x3dbl_1", 448),
                _Conv("branch3x3dbl_2", 384, (3, 3)),
                (_Conv("branch3x3dbl_3a", 384, along), _Conv("branch3x3dbl_3b", 384, down)),
            ),
        ),
        pool,
        192,
    )


_BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _Block(
        (
            (_Conv("branch3x3", 384, (3, 3), 2),),
            (
                _Conv("branch3x3dbl_1", 64),
                _Conv("branch3x3dbl_2", 96, (3, 3)),
                _Conv("branch3x3dbl_3", 96, (3, 3), 2),
            ),
        ),
        _halved,
        0,
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _Block(
        (
            (_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, (3, 3), 2)),
            (
                _Conv("branch7x7x3_1", 192),
                _Conv("branch7x7x3_2", 192, (1, 7)),
                _Conv("branch7x7x3_3", 192, (7, 1)),
                _Conv("branch7x7x3_4", 192, (3, 3), 2),
            ),
        ),
        _halved,
        0,
    ),
    "Mixed_7b": _block_e(_average),
    "Mixed_7c": _block_e(_maximum),
}


class Mixed(nn.Module):
    """Several branches over one input, concatenated."""

    def __init__(self, channels: int, block: _Block) -> None:
        super().__init__()
        self.block = block
        self.channels = 0
        for branch in block.branches:
            width = channels
            for link in branch:
                parallel = link if isinstance(link, tuple) else (link,)
                for conv in parallel:
                    layer = NormedConv(width, conv.channels, conv.kernel, stride=conv.stride, padded=conv.stride == 1)
                    self.add_module(conv.name, layer)
                width = sum(conv.channels for conv in parallel)
            self.channels += width
        if block.pooled:
            self.branch_pool = NormedConv(channels, block.pooled, (1, 1))
        self.channels += block.pooled or channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, channels, H', W')"""
        found = []
        for branch in self.block.branches:
            h = x
            for link in branch:
                parallel = link if isinstance(link, tuple) else (link,)
                h = torch.cat([self.get_submodule(conv.name)(h) for conv in parallel], dim=1)
            found.append(h)
        pooled = self.block.pool(x)
        found.append(self.branch_pool(pooled) if self.block.pooled else pooled)
        return torch.cat(found, dim=1)


class Inception(nn.Module):
    """Pictures (B, 3, 299, 299) in [-1, 1] → features (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = NormedConv(3, 32, (3, 3), stride=2, padded=False)
        self.Conv2d_2a_3x3 = NormedConv(32, 32, (3, 3), padded=False)
        self.Conv2d_2b_3x3 = NormedConv(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = NormedConv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = NormedConv(80, 192, (3, 3), padded=False)
        channels = 192
        for name, block in _BLOCKS.items():
            mixed = Mixed(channels, block)
            self.add_module(name, mixed)
            channels = mixed.channels

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, 299, 299) → (B, 2048)"""
        x = _halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pictures))))
        x = _halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def load_inception(path: Path) -> Inception:
    """Load the file that pytorch-fid or torch-fidelity downloads (`…inception-2015-12-05-6726825d.pth`), or any with
    its names. The classifier isn't needed. Raises `CheckpointError` naming what is missing or mis-shaped."""
    with empty_modules():
        model = Inception().eval().requires_grad_(False)
    layout = Layout(
        modules={name: (name,) for name, _ in model.named_children()},
        ignored=("fc.*", "AuxLogits.*", "*.num_batches_tracked"),
    )
    with open_checkpoint(path) as checkpoint:
        fill(model, match(model, layout, checkpoint), checkpoint, dtype=torch.float32)
    return model
