"""Where noise comes from. Everything is drawn in float32 on the CPU from an explicit seed or generator, then moved.

Each picture has its own stream, so that it is the same alone, in any batch and in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from sfumato.choices import check_choice
from sfumato.diffusion.integration import Noise
from sfumato.diffusion.philox import PhiloxStream
from sfumato.errors import InvalidRequest

Draw = Callable[[tuple[int, ...]], Tensor]
"""`draw((B, C, h, w))`: the next unit normal numbers, float32 on the CPU; each call goes on where the last ended."""


def cpu_noise(seeds: Sequence[int]) -> Draw:
    """One torch CPU generator per picture: picture i of a batch is what `torch.manual_seed(seeds[i])` would give."""
    return generator_noise([torch.Generator().manual_seed(seed) for seed in seeds])


def cuda_noise(seeds: Sequence[int]) -> Draw:
    """One stream per picture with the numbers torch's CUDA generator draws for that seed, computed on the CPU."""
    return _stacked([PhiloxStream(seed).normal for seed in seeds])


SOURCES: Mapping[str, Callable[[Sequence[int]], Draw]] = {"cpu": cpu_noise, "cuda": cuda_noise}
"""Noise sources that start from one seed per picture."""


def seeded_noise(source: str, seeds: Sequence[int]) -> Draw:
    """The noise source of that name for these seeds. Raises `InvalidRequest` for an unknown name."""
    check_choice("noise", source, SOURCES)
    return SOURCES[source](seeds)


def generator_noise(generators: torch.Generator | Sequence[torch.Generator]) -> Draw:
    """The caller's own generators: a list gives one to each picture, a single one fills the whole batch in order, as
    diffusers and CompVis do. Drawn on the generator's device."""
    if isinstance(generators, torch.Generator):
        return partial(_drawn, generators)
    return _stacked([partial(_drawn, generator) for generator in generators])


def _drawn(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).cpu()


def seeds_from(generator: torch.Generator, count: int) -> tuple[int, ...]:
    """`count` seeds drawn from a generator, for what needs seeds rather than numbers (Brownian paths)."""
    drawn = torch.randint(2**63 - 1, (count,), generator=generator, device=generator.device)
    return tuple(drawn.tolist())


def _stacked(draws: Sequence[Callable[[tuple[int, ...]], Tensor]]) -> Draw:
    def draw(shape: tuple[int, ...]) -> Tensor:
        """The next numbers of each picture, float32 of `shape` (B, C, h, w). Raises `InvalidRequest` where B is
        another."""
        if shape[0] != len(draws):
            raise InvalidRequest(
                f"noise for {shape[0]} pictures asked of {len(draws)} seeds: give one seed per picture"
            )
        # a batch of one is drawn with its leading 1: the same numbers
        return torch.cat([one((1, *shape[1:])) for one in draws])

    return draw


def white_noise(draw: Draw, like: Tensor) -> Noise:
    """Independent noise for every step, shaped and placed as `like`."""

    def noise(sigma: float, sigma_next: float) -> Tensor:
        return placed(draw(tuple(like.shape)), like)

    return noise


def placed(numbers: Tensor, like: Tensor) -> Tensor:
    """CPU numbers of any shape with the device and dtype of `like`. A CUDA device isn't waited for: from pinned memory
    the copy takes its turn among what is still to be done there."""
    if like.device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(like, non_blocking=True)
