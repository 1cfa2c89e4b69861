"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalised, for the weights inside a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sfumato.train.distributed.sharded_tensors import gather, shard_like

MOMENTUM = 0.95
_STEPS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315  # the quintic's coefficients, which make small singular values grow fastest
_EPS = 1e-7
_EDGES = ("conv_in", "conv_out")  # a network's first and last convolutions: of pixels, latents and moments


class Muon(Optimizer):
    """Muon for the matrices in `groups`, and another optimiser for the `rest`, in one.

    A convolution's kernel is the matrix (out, in · h · w). The update is scaled by 0.2 √max(rows, columns), which gives
    it the size of AdamW's (Liu et al. 2025), so that one learning rate and weight decay serve both.
    """

    def __init__(self, groups: list[dict[str, Any]], rest: Optimizer, *, weight_decay: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": weight_decay})
        self.matrices = list(self.param_groups)
        self.rest = rest
        self.rest.state = self.state  # one state and one list of groups, as whoever saves it expects
        self.param_groups += rest.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.matrices:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["weight_decay"])
        self.rest.step()
        return None

    def _update(self, parameter: nn.Parameter, rate: float, weight_decay: float) -> None:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter, requires_grad=False)
        momentum = state["momentum"]
        momentum.mul_(MOMENTUM).add_(gradient, alpha=1.0 - MOMENTUM)
        nesterov = gather(gradient * (1.0 - MOMENTUM) + momentum * MOMENTUM)
        matrix = nesterov.reshape(len(nesterov), -1)
        update = orthogonalised(matrix).reshape(nesterov.shape)
        parameter.mul_(1.0 - rate * weight_decay)
        parameter.add_(shard_like(update, parameter), alpha=-rate * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonalised(matrix: Tensor) -> Tensor:
    """Five Newton–Schulz steps from a matrix (M, N) towards the nearest with orthonormal rows or columns: from U S Vᵀ
    to about U Vᵀ, singular values ending between 0.7 and 1.2. Float32 on a CPU; bfloat16 on a GPU, where it suffices
    and is fast."""
    wide: Tensor = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    transposed = wide.shape[0] > wide.shape[1]
    if transposed:
        wide = wide.T
    wide = wide / wide.norm().clamp(min=_EPS)
    for _ in range(_STEPS):
        gram = wide @ wide.T
        wide = _A * wide + (_B * gram + _C * gram @ gram) @ wide
    return (wide.T if transposed else wide).to(matrix.dtype)


def hidden_matrices(module: nn.Module) -> set[nn.Parameter]:
    """The weights for Muon: of linear layers and convolutions, but for a network's first and last convolution.
    Embeddings, norms and biases are for AdamW."""
    return {
        layer.get_parameter("weight")
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and name.rpartition(".")[2] not in _EDGES
    }
