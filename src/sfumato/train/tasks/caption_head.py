"""Teaching the text encoder what captions look like: predict a picture's principal components from its caption.

A fresh cross-attention looks at all token positions about alike, and most are padding; without this the words are so
diluted that a small UNet ignores them for thousands of steps. Measured on the pilot model, whose text had no visible
effect before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidConfig
from sfumato.train.inputs.draws import Draws

SHARE = 0.3  # of the token positions that the prediction sees: each must know the caption


class CaptionHead(nn.Module):
    """A linear map from a text encoder's states to the principal components of the latents."""

    mean: Tensor
    basis: Tensor

    def __init__(self, width: int, components: int, elements: int) -> None:
        """`elements` is the number of values in a picture's latents; `fit` gives the components their meaning."""
        super().__init__()
        self.linear = nn.Linear(width, components)
        self.register_buffer("mean", torch.zeros(elements))
        self.register_buffer("basis", torch.zeros(elements, components))

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Take the principal components of many pictures' latents (N, C, h, w), scaled so that they have a mean square
        of 1 over all. `InvalidConfig` where there are fewer pictures than components."""
        count, components = len(latents), self.basis.shape[1]
        if count < components:
            raise InvalidConfig(f"{components} components need as many pictures, not {count}: give more, or take fewer")
        flat = latents.flatten(1).double()
        mean = flat.mean(dim=0)
        # the covariance's eigenvectors, largest last: exact, and small beside the pictures
        _, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean))
        basis = vectors.flip(1)[:, :components]
        scale = ((flat - mean) @ basis).square().mean().sqrt()
        self.mean.copy_(mean)
        self.basis.copy_(basis / scale)

    def components(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) → (B, components)"""
        out: Tensor = (latents.flatten(1) - self.mean) @ self.basis
        return out

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        """States (B, T, width) and which positions count (B, T) → components (B, components), from their mean."""
        weights = seen / seen.sum(dim=1, keepdim=True)
        out: Tensor = self.linear((states * weights[:, :, None]).sum(dim=1))
        return out

    def loss(self, states: Tensor, latents: Tensor, draws: Draws) -> Tensor:
        """Mean squared error of the components, each sample seen through a random share of its positions: a scalar,
        which is the unexplained share of the variance."""
        seen = seen_positions(draws, states.shape[1]).to(states.device)
        predicted: Tensor = self(states, seen)
        return (predicted - self.components(latents)).square().mean()


def seen_positions(draws: Draws, tokens: int) -> Tensor:
    """Which token positions each sample's prediction sees, (B, tokens) of 0 and 1, the first always: never none."""
    seen = (draws.uniform("positions", (tokens,)) < SHARE).float()
    seen[:, 0] = 1.0
    return seen
