"""Features of an ImageNet network that comes with a package, to judge by where no Inception is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sfumato.models.efficientnet import load_efficientnet, packaged_weights
from sfumato.pictures.pixels import Pixels, picture_to_tensor
from sfumato.report.features.network import Features, identity

SPACE = "efficientnet-lite0"
_SIDE = 224


class EfficientNetFeatures:
    """A `Network` with one space of 1280 features. Its Fréchet distance is no FID: other numbers, the same use.

    `weights` None takes the package's file; `MissingExtra` without the package.
    """

    def __init__(self, weights: Path | None = None) -> None:
        path = weights or packaged_weights()
        self._network = load_efficientnet(path)
        self.identity = identity(SPACE, path, resize=f"Lanczos to {_SIDE}×{_SIDE}")

    @torch.inference_mode()
    def features(self, pictures: Sequence[Pixels]) -> Features:
        rows = [self._network(picture_to_tensor(Image.fromarray(picture), _SIDE, _SIDE))[0] for picture in pictures]
        return {SPACE: torch.stack(rows).numpy().astype(np.float32)}
