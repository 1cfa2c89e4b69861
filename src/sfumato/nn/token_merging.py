"""Token merging: tokens that are much alike are averaged before attention and given their answer back afterwards.

Bolya & Hoffman 2023, "Token Merging for Fast Stable Diffusion", section 3: in every 2×2 cell of the map one token,
drawn at random, is a destination; each other token is a source and is paired with the destination it is most alike
(bipartite soft matching, Bolya et al. 2022). The most alike sources are merged, as many as the ratio says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CELL = 2


@dataclass(frozen=True, slots=True)
class Matching:
    """Which tokens become one: `groups` (B, N) says for each token which of `count` groups it is in."""

    groups: Tensor
    count: int

    def merge(self, x: Tensor) -> Tensor:
        """Rows (B, N, C) → the mean of each group (B, count, C)."""
        batch, _, channels = x.shape
        rows = self._rows()
        sums = _summed(x.reshape(-1, channels), rows, batch * self.count)
        sizes = torch.bincount(rows, minlength=len(sums)).to(x.dtype)
        return (sums / sizes[:, None]).view(batch, self.count, channels)

    def unmerge(self, x: Tensor) -> Tensor:
        """Rows (B, count, C) → (B, N, C): each token gets its group's."""
        return x.flatten(0, 1).index_select(0, self._rows()).view(*self.groups.shape, x.shape[-1])

    def _rows(self) -> Tensor:
        """The groups of all pictures, counted on: (B·N,)."""
        first = torch.arange(len(self.groups), device=self.groups.device)[:, None] * self.count
        return (self.groups + first).flatten()


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """Merge `ratio` of a map's tokens, at most the three of four that are sources; `seed` draws the destinations."""

    ratio: float
    seed: int

    def match(self, tokens: Tensor, size: tuple[int, int]) -> Matching:
        """tokens (B, h·w, C) of a map of that size, row by row → what to merge, in each picture by itself."""
        batch, count, _ = tokens.shape
        chosen = destinations(*size, self.seed)
        to, of = (torch.nonzero(part)[:, 0].to(tokens.device) for part in (chosen, ~chosen))
        gone = min(int(count * self.ratio), len(of)) if len(to) else 0
        if not gone:
            return Matching(torch.arange(count, device=tokens.device).expand(batch, -1), count)
        unit = tokens / tokens.norm(dim=-1, keepdim=True)
        alike = unit.index_select(1, of) @ unit.index_select(1, to).transpose(1, 2)  # (B, sources, destinations)
        best, nearest = alike.max(dim=-1)
        order = best.argsort(dim=-1, descending=True, stable=True)
        kept = len(of) - gone
        numbers = torch.arange(kept, device=tokens.device).expand(batch, -1)
        placed = torch.empty_like(nearest)
        placed.scatter_(1, order[:, :gone], kept + nearest.gather(1, order[:, :gone]))
        placed.scatter_(1, order[:, gone:], numbers)
        groups = torch.empty((batch, count), dtype=torch.long, device=tokens.device)
        groups[:, of] = placed
        groups[:, to] = torch.arange(kept, kept + len(to), device=tokens.device)
        return Matching(groups, count - gone)


def destinations(height: int, width: int, seed: int) -> Tensor:
    """Which tokens of a map are destinations, of shape (height·width,): one in every whole 2×2 cell, drawn as tomesd
    draws it. On the CPU, so that every device has the same."""
    down, across = height // _CELL, width // _CELL
    drawn = torch.randint(_CELL * _CELL, (down, across, 1), generator=torch.Generator().manual_seed(seed))
    cells = torch.zeros(down, across, _CELL * _CELL, dtype=torch.bool).scatter_(2, drawn, True)
    chosen = torch.zeros(height, width, dtype=torch.bool)
    whole = cells.view(down, across, _CELL, _CELL).transpose(1, 2).reshape(down * _CELL, across * _CELL)
    chosen[: down * _CELL, : across * _CELL] = whole
    return chosen.flatten()


def _summed(x: Tensor, rows: Tensor, count: int) -> Tensor:
    """Row i of the result is the sum of the x whose row is i, added in one order each time."""
    sums = x.new_zeros(count, x.shape[-1])
    if x.is_cuda:  # where index_add_ adds in any order, and this doesn't
        return sums.index_put_((rows,), x, accumulate=True)
    return sums.index_add_(0, rows, x)
