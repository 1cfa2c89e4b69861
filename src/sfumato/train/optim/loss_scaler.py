"""Keeping float16 gradients out of the zeros: the loss is scaled up, the gradients down again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST = 65536.0  # these four are torch.amp.GradScaler's
_GROWTH, _BACKOFF = 2.0, 0.5
_INTERVAL = 2000  # steps without an overflow after which the scale grows


@dataclass(slots=True)
class LossScaler:
    """The scale of the loss, and the steps since it last changed.

    torch has one of its own, which looks for infinities per device and optimiser and fails where one had no gradient
    ("No inf checks were recorded"), and another for FSDP. Here the loop has the gradients' norms over all processes
    anyway, and those say it.
    """

    enabled: bool
    scale: float = _FIRST
    steady: int = 0

    def __post_init__(self) -> None:
        if not self.enabled:
            self.scale = 1.0

    def overflowed(self) -> bool:
        """Note a gradient that isn't finite: whether that can be the scale's fault, which it is smaller after."""
        if not self.enabled or self.scale <= 1.0:
            return False
        self.scale, self.steady = self.scale * _BACKOFF, 0
        return True

    def went_well(self) -> None:
        """Note a step with finite gradients."""
        if self.enabled:
            self.steady += 1
            if self.steady == _INTERVAL:
                self.scale, self.steady = self.scale * _GROWTH, 0

    def tensors(self) -> dict[str, Tensor]:
        """Give what a checkpoint keeps, of shape (2,) in float64: nothing for other precisions."""
        return {"scaler.state": torch.tensor([self.scale, self.steady], dtype=torch.float64)} if self.enabled else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the scale, of shape (2,), from a checkpoint's tensors: the inverse of `tensors`."""
        if self.enabled and "scaler.state" in tensors:
            scale, steady = tensors["scaler.state"].tolist()
            self.scale, self.steady = scale, int(steady)
