"""Maps too large to hold several of, in strips of rows: computed when they are asked for, or stored and let go of.

A strip of a convolution needs a row of the map above and below it and nothing else, and a GroupNorm the sums over the
whole map, which are added up strip by strip. So the numbers are those of the whole map: with the compiled kernels the
same products are added in the same order, but for an encoder's strided convolutions, which are PyTorch's. All maps here
are (1, H, W, C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.engines.kernels import Affine, Kernels, Sums

# Strips begin on rows that the kernels' tiles begin on, also after an enlargement and before a reduction.
ALIGNED = 8
_PIXELS = 2**14  # enough of them in a strip for every thread to have tiles of its own


class Map(Protocol):
    """A map whose rows can be asked for, in any order; `size` is (H, W)."""

    size: tuple[int, int]

    def rows(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last` (excluded): (1, last - first, W, C), contiguous."""
        ...

    def release(self, before: int) -> None:
        """Rows before this one won't be asked for again."""
        ...


def strips(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """First and last (excluded) row of each strip of a map of (H, W)."""
    height, width = size
    step = max(1, _PIXELS // (width * ALIGNED)) * ALIGNED
    for first in range(0, height, step):
        yield first, min(first + step, height)


class Stored:
    """A map in memory, strip by strip, with its sums."""

    def __init__(self, size: tuple[int, int], parts: list[tuple[int, Tensor]], sums: Sums) -> None:
        self.size, self.sums = size, sums
        self._parts = parts  # first row, rows

    def rows(self, first: int, last: int) -> Tensor:
        """Rows (1, last - first, W, C), put together from the strips."""
        found = [
            part[:, max(first - start, 0) : last - start]
            for start, part in self._parts
            if start < last and first < start + part.shape[1]
        ]
        return (found[0] if len(found) == 1 else torch.cat(found, dim=1)).contiguous()

    def release(self, before: int) -> None:
        self._parts = [(start, part) for start, part in self._parts if start + part.shape[1] > before]


class Convolved:
    """A 3×3 convolution of a map, computed when it is asked for, with what `Kernels.conv3x3` does before and after.

    The last rows that were computed are kept: whoever goes through it from top to bottom has each row computed once.
    """

    def __init__(
        self,
        kernels: Kernels,
        source: Map,
        conv: nn.Conv2d,
        *,
        norm: Affine | None = None,
        residual: Map | None = None,
        enlarged: bool = False,
    ) -> None:
        self._kernels, self._source, self._conv = kernels, source, conv
        self._norm, self._residual, self._factor = norm, residual, 2 if enlarged else 1
        height, width = source.size
        self.size = height * self._factor, width * self._factor
        self._begin = self._end = 0
        self._kept: Tensor | None = None  # rows _begin to _end

    def rows(self, first: int, last: int) -> Tensor:
        """Rows (1, last - first, W, N), convolved unless they are kept."""
        # From an aligned row to another, so that the kernels' tiles lie where they do on the whole map.
        begin, end = first // ALIGNED * ALIGNED, min(-(-last // ALIGNED) * ALIGNED, self.size[0])
        kept, self._kept = self._kept, None
        if kept is None or not self._begin <= begin < self._end:
            kept, self._end = None, begin
        else:
            kept = kept[:, begin - self._begin :]
        if end > self._end:
            made = self._compute(self._end, end)
            kept = made if kept is None else torch.cat([kept, made], dim=1)
        assert kept is not None
        self._kept, self._begin, self._end = kept, begin, max(end, self._end)
        return kept[:, first - begin : last - begin].contiguous()

    def _compute(self, begin: int, end: int) -> Tensor:
        factor = self._factor
        above = max((begin - 1) // factor, 0)
        below = min(end // factor + 1, self._source.size[0])
        return self._kernels.conv3x3(
            self._source.rows(above, below),
            self._conv,
            norm=self._norm,
            residual=self._residual.rows(begin, end) if self._residual else None,
            enlarged=factor == 2,
            rows=(begin - above * factor, end - above * factor),
        )

    def release(self, before: int) -> None:
        begin = before // ALIGNED * ALIGNED
        self._source.release(max((begin - 1) // self._factor, 0))
        if self._residual:
            # The source may be computed from the same map, which it needs a few rows higher up.
            self._residual.release(begin - 2 * ALIGNED)


class Mapped:
    """A map pixel by pixel, or of a few of another's rows: `make` is given the rows `needs` says."""

    def __init__(
        self,
        source: Map,
        make: Callable[[Tensor, int], Tensor],
        *,
        size: tuple[int, int] | None = None,
        needs: Callable[[int, int], tuple[int, int]] = lambda first, last: (first, last),
    ) -> None:
        self.size = size or source.size
        self._source, self._make, self._needs = source, make, needs

    def rows(self, first: int, last: int) -> Tensor:
        """Rows (1, last - first, W, N), made of the source's."""
        above, below = self._needs(first, last)
        below = min(below, self._source.size[0])
        return self._make(self._source.rows(above, below), last - first)

    def release(self, before: int) -> None:
        self._source.release(self._needs(before, before)[0])


def stored(kernels: Kernels, source: Map, *, consume: bool) -> Stored:
    """A map with all its rows in memory; those of its source are let go of as it goes, where it is to be consumed."""
    parts: list[tuple[int, Tensor]] = []
    sums: Sums | None = None
    for first, last in strips(source.size):
        part = source.rows(first, last)
        sums = kernels.add_sums(part, sums)
        parts.append((first, part))
        if consume:
            source.release(last)
    assert sums is not None
    return Stored(source.size, parts, sums)


def sums_of(kernels: Kernels, source: Map) -> Sums:
    """The sums of a map that is computed for them alone."""
    if isinstance(source, Stored):
        return source.sums
    sums: Sums | None = None
    for first, last in strips(source.size):
        sums = kernels.add_sums(source.rows(first, last), sums)
    assert sums is not None
    return sums
