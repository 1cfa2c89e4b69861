"""The approximate engine: products of numbers rounded to bfloat16, against PyTorch's in double.

Where the processor has none of those products, the engine refuses: then that is all there is to test.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sfumato.engines import native_build as compiler
from sfumato.engines.native_kernels import NativeKernels
from sfumato.engines.registry import start
from support.engine_networks import ask, gaussian, relative, tiny_autoencoder, tiny_unet

HERE = [True] if not compiler.why_not() and compiler.kernels().sfumato_pairs() else []


@pytest.fixture(params=HERE)
def kernels() -> NativeKernels:
    return NativeKernels(pairs=True)


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor without the instructions."""
    monkeypatch.setenv("SFUMATO_INSTRUCTIONS", "avx2")
    compiler.kernels.cache_clear()
    yield
    compiler.kernels.cache_clear()


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


@pytest.mark.parametrize("sizes", [(1, 1, 8), (37, 50, 70), (130, 701, 47), (500, 1300, 64)], ids=str)
@torch.inference_mode()
def test_products_are_those_of_rounded_numbers(sizes: tuple[int, int, int], kernels: NativeKernels) -> None:
    """Odd depths too, where the last pair has one number; sums are float32's."""
    count, width, outputs = sizes
    x, layer, residual = gaussian(1, count, width), nn.Linear(width, outputs), gaussian(1, count, outputs)
    expected = rounded(x) @ rounded(layer.weight).T + layer.bias.double() + residual
    assert relative(kernels.linear(x, layer, residual=residual), expected) <= 2e-6
    pairs = nn.Linear(width, 2 * outputs)
    value, gate = (rounded(x) @ rounded(pairs.weight).T + pairs.bias.double()).chunk(2, dim=-1)
    assert relative(kernels.linear(x, pairs, gated=True), value * nn.functional.gelu(gate)) <= 2e-6


@torch.inference_mode()
def test_norms_are_applied_before_rounding(kernels: NativeKernels) -> None:
    x, layer, norm = gaussian(2, 40, 96) * 3 + 1, nn.Linear(96, 33), nn.LayerNorm(96)
    group = nn.GroupNorm(4, 96)
    ours = kernels.linear(x, layer, norm=kernels.layer_norm(x, norm))
    assert relative(ours, rounded(norm(x)) @ rounded(layer.weight).T + layer.bias.double()) <= 1e-4
    ours = kernels.linear(x, layer, norm=kernels.group_norm(x, group))
    normed = group(x.transpose(1, 2)).transpose(1, 2)
    assert relative(ours, rounded(normed) @ rounded(layer.weight).T + layer.bias.double()) <= 1e-4


@pytest.mark.parametrize(
    "shape", [(1, 5, 7, 3, 4), (2, 8, 8, 36, 70), (1, 33, 20, 341, 33), (1, 20, 20, 1290, 33)], ids=str
)
@pytest.mark.parametrize("enlarged", [False, True])
@torch.inference_mode()
def test_convolutions_lose_what_their_transform_costs(
    shape: tuple[int, int, int, int, int], enlarged: bool, kernels: NativeKernels
) -> None:
    """Rounding after Winograd's transforms: 4e-3 for F(2×2), 1.1e-2 for F(4×4); a direct convolution's is 2.4e-3."""
    batch, height, width, channels, outputs = shape
    x, conv = gaussian(batch, height, width, channels), nn.Conv2d(channels, outputs, 3, padding=1)
    ours = kernels.conv3x3(x, conv, enlarged=enlarged)
    h = x.permute(0, 3, 1, 2).double()
    if enlarged:
        h = nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")
    assert 1e-3 <= relative(ours, conv.double()(h).permute(0, 2, 3, 1)) <= 1.3e-2


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 8), (3, 50, 33, 20), (2, 200, 701, 40), (2, 30, 77, 24), (1, 3, 5, 7)], ids=str
)
@torch.inference_mode()
def test_attention_is_the_formulas_within_a_rounding(sizes: tuple[int, int, int, int], kernels: NativeKernels) -> None:
    heads, n, m, width = sizes
    q, k, v = (gaussian(2, rows, heads * width, seed=i) for i, rows in enumerate((n, m, m)))
    queries, keys, values = (x.double().view(2, -1, heads, width).transpose(1, 2) for x in (q, k, v))
    weights = torch.softmax(queries @ keys.transpose(2, 3) / width**0.5, dim=-1)
    expected = (weights @ values).transpose(1, 2).reshape(2, n, -1)
    assert relative(kernels.attention(q, k, v, heads), expected) <= 5e-3


@pytest.mark.parametrize("here", HERE)
@torch.inference_mode()
def test_networks_are_near_and_named_for_what_they_are(here: bool) -> None:
    module, pictures = tiny_unet("v1-like"), tiny_autoencoder("v1-like")
    engine = start("bf16", module, pictures)
    assert engine.name == "bf16"
    x, context, t = gaussian(2, 4, 16, 24), gaussian(2, 7, 24, seed=2), torch.tensor([981.0, 12.5])
    assert 1e-4 <= relative(ask(engine.unet, x, t, context), module(x, t, context)) <= 5e-2
    latents, images = gaussian(1, 4, 5, 6), gaussian(1, 3, 32, 48)
    assert 1e-4 <= relative(engine.decode(latents), pictures.decode(latents)) <= 5e-2
    assert 1e-4 <= relative(engine.encode(images).mean, pictures.encode(images).mean) <= 5e-2


@pytest.mark.usefixtures("avx2")
def test_elsewhere_the_exact_engine_runs_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        engine = start("bf16", tiny_unet("v1-like"), tiny_autoencoder("v1-like"))
    assert engine.name == "winograd"
    assert "no instructions for bfloat16" in caplog.text
    assert "the exact winograd runs instead" in caplog.text
