"""How the programs that compute FID bring a picture to 299×299: each in its own way, which moves the score by more
than many models differ (Parmar et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfumato.models.inception import SIDE
from sfumato.pictures.pixels import Pixels

Convention = Literal["pytorch-fid", "torch-fidelity", "clean-fid"]


def pytorch_fid(pixels: Pixels) -> Tensor:
    """Bilinear to (3, 299, 299) between pixel centres, without a filter against aliasing; [0, 255] → [-1, 1]."""
    unit = _channels_first(pixels) / 255.0
    return 2.0 * F.interpolate(unit[None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0] - 1.0


def torch_fidelity(pixels: Pixels) -> Tensor:
    """Bilinear to (3, 299, 299) from pixel corners, as TensorFlow 1 and NVIDIA's TorchScript; (x - 128) / 128."""
    values = _channels_first(pixels)
    for axis in (1, 2):
        values = _along(values, axis)
    return (values - 128.0) / 128.0


def clean_fid(pixels: Pixels) -> Tensor:
    """Pillow's bicubic, which filters, to (3, 299, 299) floats, each channel clipped to [0, 255]; (x - 128) / 128."""
    channels = [
        np.asarray(Image.fromarray(pixels[:, :, c].astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return (torch.from_numpy(np.stack(channels).clip(0.0, 255.0)) - 128.0) / 128.0


CONVENTIONS: Mapping[Convention, Callable[[Pixels], Tensor]] = MappingProxyType(
    {"pytorch-fid": pytorch_fid, "torch-fidelity": torch_fidelity, "clean-fid": clean_fid}
)
"""A picture (H, W, 3) uint8 → (3, 299, 299) float32, as the network takes it."""


def _channels_first(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()


def _along(values: Tensor, axis: int) -> Tensor:
    """Bilinear along one axis, output k at input k · size / 299; beyond the last pixel it stays the last."""
    size = values.shape[axis]
    places = torch.arange(SIDE, dtype=torch.float32) * torch.tensor(size / SIDE, dtype=torch.float32)
    lower = places.long()
    upper = (lower + 1).clamp_max(size - 1)
    shape = [-1 if i == axis else 1 for i in range(3)]
    first, second = values.index_select(axis, lower), values.index_select(axis, upper)
    return first + (second - first) * (places - lower).view(shape)
