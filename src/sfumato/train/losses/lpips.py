"""LPIPS: distance between two pictures in the features of a VGG16 (Zhang et al. 2018). Its weights are local files."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import CheckpointError
from sfumato.weights.checkpoint import Checkpoint, open_checkpoint

# Channels of the 3×3 convolutions, a group a resolution; the features are each group's last activation.
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10


class Lpips(nn.Module):
    """The distance of version 0.1 with VGG16: differentiable in its inputs, its own weights fixed."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        channels = [3, *(count for group in _VGG16 for count in group)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(channels)
        )
        self.heads = nn.ParameterList(nn.Parameter(torch.empty(group[-1])) for group in _VGG16)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Activations at the five resolutions, each channel vector divided by its length: (B, C, H/2^i, W/2^i)."""
        x = (pictures - self.shift) / self.scale
        convolutions = iter(self.convolutions)
        found = []
        for i, group in enumerate(_VGG16):
            if i:
                x = F.max_pool2d(x, 2)
            for _ in group:
                x = F.relu(next(convolutions)(x))
            found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPS))
        return found

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Two batches of pictures (B, 3, H, W) in [-1, 1], sides at least 16 → distances (B,)."""
        total = output.new_zeros(len(output))
        for a, b, head in zip(self.features(output), self.features(target), self.heads, strict=True):
            total = total + ((a - b).square() * head.view(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
        return total


def load_lpips(vgg: Path, heads: Path) -> Lpips:
    """Load torchvision's VGG16 (`features.0.weight` …) and LPIPS' linear heads (`lin0.model.1.weight` …), either as
    safetensors or as torch.save wrote them. `CheckpointError` names what is missing."""
    model = Lpips()
    with open_checkpoint(vgg) as checkpoint:
        index = 0
        convolutions = iter(model.convolutions)
        for group in _VGG16:
            for _ in group:
                convolution = next(convolutions)
                for name in ("weight", "bias"):
                    _copy(checkpoint, f"features.{index}.{name}", getattr(convolution, name))
                index += 2  # an activation lies between
            index += 1  # and a pooling after each group
    with open_checkpoint(heads) as checkpoint:
        for i, head in enumerate(model.heads):
            _copy(checkpoint, f"lin{i}.model.1.weight", head)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _copy(checkpoint: Checkpoint, name: str, parameter: Tensor) -> None:
    tensor = checkpoint.read(name, torch.float32)
    if tensor.numel() != parameter.numel():
        raise CheckpointError(
            f"{checkpoint.path}: {name} is {tuple(tensor.shape)}, expected {tuple(parameter.shape)}: not LPIPS' VGG16"
        )
    parameter.copy_(tensor.reshape(parameter.shape))
