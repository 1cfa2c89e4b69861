"""The adversarial loss of the autoencoder: a critic of patches, hinge losses, and the weight that balances them
(Isola et al. 2017; Esser et al. 2021, eq. 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_WEIGHT = 1e4


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches: 4×4 convolutions, `layers` of them with stride 2; batch norms but on the first."""

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, layers + 1):
            wider = channels * min(2**i, 8)
            stride = 2 if i < layers else 1
            blocks += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(width, 1, 4, padding=1))
        self.apply(_first_weights)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) → logits (B, 1, h, w), high where it looks real."""
        out: Tensor = self.blocks(pictures)
        return out


@torch.no_grad()
def _first_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """½ (mean max(0, 1 - real) + mean max(0, 1 + fake)) of logits (B, 1, h, w), a scalar (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def frozen_logits(discriminator: nn.Module, pictures: Tensor) -> Tensor:
    """The critic's logits (B, 1, h, w) for pictures (B, 3, H, W), with gradients for these and none for the critic."""
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    out: Tensor = torch.func.functional_call(discriminator, fixed, (pictures,))
    return out


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """‖∇ reconstruction‖ / (‖∇ adversarial‖ + 1e-4) of two scalar losses at the decoder's last weights, at most 1e4: a
    scalar without gradient."""
    wanted = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].norm()
    judged = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0].norm()
    ratio: Tensor = wanted / (judged + 1e-4)
    return ratio.clamp(0.0, MAX_WEIGHT).detach()
