"""Distance between two pictures in the features of an ImageNet EfficientNet-Lite0. It plays LPIPS' part where no VGG16
weights are at hand; it is not LPIPS.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from sfumato.models.efficientnet import EfficientNet
from sfumato.models.efficientnet import load_efficientnet as load_network

_TAPS = (0, 2, 4, 7)  # last blocks at 1/2, 1/4, 1/8 and 1/16 of the picture, where shape still has a place
_UNIT = 1e-10


class EfficientNetFeatures(nn.Module):
    """The network up to the last feature map the distance uses. Its weights are fixed."""

    def __init__(self, network: EfficientNet) -> None:
        super().__init__()
        self.network = network

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Pictures in [-1, 1] → maps (B, C, h, w) whose channel vectors are divided by their lengths."""
        maps = self.network.maps(pictures)
        return [maps[i] / (maps[i].square().sum(dim=1, keepdim=True) + _UNIT).sqrt() for i in _TAPS]

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Two batches (B, 3, H, W) → distances (B,): the squared difference of the unit vectors, averaged over places,
        summed over the maps."""
        total = output.new_zeros(len(output))
        for a, b in zip(self.features(output), self.features(target), strict=True):
            total = total + (a - b).square().sum(dim=1).mean(dim=(1, 2))
        return total


def load_efficientnet(path: Path) -> EfficientNetFeatures:
    """Load the package's file (`models.efficientnet`). `CheckpointError` names what is missing or mis-shaped."""
    return EfficientNetFeatures(load_network(path, blocks=_TAPS[-1] + 1))
