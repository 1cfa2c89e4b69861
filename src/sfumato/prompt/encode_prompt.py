"""From windows of tokens to the context the UNet attends to, with the prompt's weights applied."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.prompt.windows import PromptPlan


def encode(plan: PromptPlan, encode_ids: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, float]]:
    """Each condition's context (1, W·T, C), its windows one after another, and the condition's weight.

    `encode_ids` is the text encoder: int64 ids (W, T), on the CPU, to hidden states (W, T, C) wherever it likes.
    """
    contexts = []
    for condition in plan.conditions:
        hidden = encode_ids(torch.tensor(condition.windows.ids))  # (W, T, C)
        weighted = apply_weights(hidden, torch.tensor(condition.windows.weights))
        contexts.append((weighted.reshape(1, -1, weighted.shape[-1]), condition.weight))
    return contexts


def apply_weights(hidden: Tensor, weights: Tensor) -> Tensor:
    """Multiply each token's vector (W, T, C) by its weight (W, T), then scale each window to the mean it had before.

    A1111's "original" emphasis (modules/sd_emphasis.py). Windows whose weights are all 1 come back bit for bit.
    """
    precise = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    weights = weights.to(precise)
    weighted = precise * weights[..., None]
    scale = precise.mean(dim=(1, 2), keepdim=True) / weighted.mean(dim=(1, 2), keepdim=True)  # (W, 1, 1)
    plain = (weights == 1).all(dim=1)[:, None, None]
    return torch.where(plain, hidden, (weighted * scale).to(hidden.dtype))
