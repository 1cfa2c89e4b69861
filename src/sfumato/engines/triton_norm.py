"""GroupNorm and SiLU of a channels-last map in two passes, written in Triton: one reads, one reads and writes.

torch's own GroupNorm on CUDA knows only maps with the channels first: around it a channels-last map is turned over and
back. Statistics are means and squared deviations of parts of a map, joined as in Chan, Golub & LeVeque (1983): sums of
squares would cancel where a mean is large. Everything is computed in float32 and rounded once.

Importing this module needs the package triton, which torch's builds for CUDA bring along.
"""

# No annotations as strings: Triton's interpreter looks for the type `tl.constexpr` itself.
import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # numbers a program holds at a time
_ROW = 64  # channels of a tile, so that rows of half precision are whole cache lines
_PROGRAMS = 512  # a few for each multiprocessor of a large GPU


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float, silu: bool) -> Tensor:
    """torch.nn.functional.group_norm of x (B, C, H, W), and its SiLU if asked for; channels last, of x's dtype.

    Another layout is brought into that one first. weight and bias are (C,).
    """
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    pixels, group = height * width, channels // groups
    wide = triton.next_power_of_2(group)
    together = min(triton.next_power_of_2(groups), max(1, _ROW // wide))
    high = min(triton.next_power_of_2(pixels), max(1, _TILE // (wide * together)))
    columns = triton.cdiv(groups, together)
    part = high * triton.cdiv(triton.cdiv(pixels, high), max(1, _PROGRAMS // (batch * columns)))  # pixels of a program
    parts = triton.cdiv(pixels, part)
    sizes = (pixels, channels, groups, group, part)
    tile = {"PIXELS": high, "GROUPS": together, "WIDTH": wide}
    means, squares = torch.empty(2, batch, parts, groups, dtype=torch.float32, device=x.device)
    answer = torch.empty_like(x)
    grid = (parts, columns, batch)
    _statistics[grid](x, means, squares, *sizes, **tile)
    _normalise[grid](
        x, weight, bias, means, squares, answer, *sizes, eps, **tile, PARTS=triton.next_power_of_2(parts), SILU=silu
    )
    return answer


@triton.jit
def _statistics(
    x,
    means,
    squares,
    pixels,
    channels,
    groups,
    group,
    part,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Mean and sum of squared deviations, (B, parts, groups) each, of the pixels of one part."""
    index, batch = tl.program_id(0), tl.program_id(2)
    first, last = index * part, tl.minimum(index * part + part, pixels)
    number = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    rows, within = tl.arange(0, PIXELS)[:, None, None], tl.arange(0, WIDTH)[None, None, :]
    columns = number[None, :, None] * group + within
    inside = (number[None, :, None] < groups) & (within < group)
    picture = x + batch.to(tl.int64) * pixels * channels
    mean, square = tl.zeros((GROUPS,), tl.float32), tl.zeros((GROUPS,), tl.float32)
    seen = 0.0
    for start in range(first, last, PIXELS):
        here = inside & (start + rows < last)
        numbers = picture + (start + rows).to(tl.int64) * channels + columns
        values = tl.load(numbers, mask=here, other=0.0).to(tl.float32)
        count = (tl.minimum(last - start, PIXELS) * group).to(tl.float32)
        middle = tl.sum(tl.sum(values, 2), 0) / count
        away = tl.where(here, values - middle[None, :, None], 0.0)
        step = middle - mean
        share = count / (seen + count)
        mean += step * share
        square += tl.sum(tl.sum(away * away, 2), 0) + step * step * seen * share
        seen += count
    place = (batch * tl.num_programs(0) + index) * groups + number
    tl.store(means + place, mean, mask=number < groups)
    tl.store(squares + place, square, mask=number < groups)


@triton.jit
def _normalise(
    x,
    weight,
    bias,
    means,
    squares,
    answer,
    pixels,
    channels,
    groups,
    group,
    part,
    eps,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    SILU: tl.constexpr,
):
    """The pixels of one part by the whole map's statistics, which each program joins for its groups."""
    index, batch = tl.program_id(0), tl.program_id(2)
    first, last = index * part, tl.minimum(index * part + part, pixels)
    number = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)

    others = tl.arange(0, PARTS)
    count = (tl.minimum(tl.maximum(pixels - others * part, 0), part) * group).to(tl.float32)
    place = (batch * tl.num_programs(0) + others)[:, None] * groups + number[None, :]
    known = (count > 0.0)[:, None] & (number < groups)[None, :]
    middles = tl.load(means + place, mask=known, other=0.0)
    total = tl.sum(count, 0)
    mean = tl.sum(middles * count[:, None], 0) / total
    away = tl.where(known, middles - mean[None, :], 0.0)
    variance = tl.sum(tl.load(squares + place, mask=known, other=0.0) + away * away * count[:, None], 0) / total

    rows, within = tl.arange(0, PIXELS)[:, None, None], tl.arange(0, WIDTH)[None, None, :]
    columns = number[None, :, None] * group + within
    inside = (number[None, :, None] < groups) & (within < group)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    scale *= (1.0 / tl.sqrt(variance + eps))[None, :, None]
    shift = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32) - mean[None, :, None] * scale
    offset = batch.to(tl.int64) * pixels * channels
    for start in range(first, last, PIXELS):
        here = inside & (start + rows < last)
        numbers = offset + (start + rows).to(tl.int64) * channels + columns
        values = tl.load(x + numbers, mask=here, other=0.0).to(tl.float32) * scale + shift
        if SILU:
            values *= tl.sigmoid(values)
        tl.store(answer + numbers, values.to(answer.dtype.element_ty), mask=here)
