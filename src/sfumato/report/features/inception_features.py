"""Inception's features in the conventions of three programs, from one pass over the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sfumato.models.inception import load_inception
from sfumato.pictures.pixels import Pixels
from sfumato.report.features.network import Features, identity
from sfumato.report.features.resizing import CONVENTIONS, Convention


class InceptionFeatures:
    """A `Network` with a space of 2048 features a convention, named `inception/pytorch-fid` and so on.

    clean-fid itself uses NVIDIA's TorchScript of the same graph; ours are the weights of the port in its place.
    """

    def __init__(self, weights: Path, *, conventions: Sequence[Convention] = tuple(CONVENTIONS)) -> None:
        self._conventions = conventions
        self._network = load_inception(weights)
        self.identity = identity("inception-2015-12-05", weights, resize=", ".join(conventions))

    @torch.inference_mode()
    def features(self, pictures: Sequence[Pixels]) -> Features:
        found = {}
        for convention in self._conventions:
            prepare = CONVENTIONS[convention]
            rows = [self._network(prepare(picture)[None])[0] for picture in pictures]
            found[f"inception/{convention}"] = torch.stack(rows).numpy().astype(np.float32)
        return found
