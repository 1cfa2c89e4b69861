"""The engines for GPUs against the modules they run, on random weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sfumato.engines.fused import FusedGroupNorm, why_not
from sfumato.engines.registry import start
from sfumato.nn.norm import GroupNormSiLU
from sfumato.runtime import compute_exactly
from support.engine_networks import ask, gaussian, relative, tiny_autoencoder, tiny_unet

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("name", "dtype", "most"),
    [
        ("graph", torch.float32, 1e-3),
        ("graph", torch.float16, 2e-2),
        ("graph", torch.bfloat16, 1e-1),
        ("compile", torch.float16, 2e-2),
    ],
)
@torch.inference_mode()
def test_engines_match_the_modules(name: str, dtype: torch.dtype, most: float) -> None:
    """At two sizes and several inputs, so that graphs are captured, kept and replayed."""
    compute_exactly(torch.device("cuda"), dtype)
    small = name == "compile"  # few kinds of blocks, one size of picture: compiling takes longest of all here
    shapes = ("one level", "factor 2") if small else ("v1-like", "v1-like")
    (module, pictures), (on_gpu, pictures_on_gpu) = ((tiny_unet(shapes[0]), tiny_autoencoder(shapes[1])) for _ in "ab")
    engine = start(name, on_gpu.to("cuda", dtype), pictures_on_gpu.to("cuda", dtype))
    assert engine.name == name
    for seed, size in enumerate([(16, 24)] * 2 if small else [(16, 24), (9, 16), (16, 24)]):
        x, context = gaussian(2, 4, *size, seed=seed), gaussian(2, 7, module.config.context_dim, seed=seed + 9)
        t = torch.full((1,), 981.0 - seed)
        found = ask(engine.unet, x.to("cuda", dtype), t.cuda(), context.to("cuda", dtype))
        assert relative(found.float().cpu(), module(x, t, context)) <= most
    latents = gaussian(1, pictures.config.latent_channels, 8, 8)
    assert relative(engine.decode(latents.to("cuda", dtype)).float().cpu(), pictures.decode(latents)) <= most


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 320, 64, 64), 32), ((2, 2560, 8, 8), 32), ((1, 128, 512, 512), 32), ((3, 12, 9, 7), 4)]
)
@torch.inference_mode()
def test_fused_norms_match_torch(shape: tuple[int, ...], groups: int, dtype: torch.dtype, most: float) -> None:
    assert why_not("cuda") == ""
    x = (gaussian(*shape) * 3 + 50).to("cuda", dtype, memory_format=torch.channels_last)
    for kind in (nn.GroupNorm, GroupNormSiLU):
        norm = kind(groups, shape[1]).to("cuda", dtype)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        expected = F.group_norm(x.double(), groups, norm.weight.double(), norm.bias.double(), norm.eps)
        found = FusedGroupNorm(norm)(x)
        assert found.dtype is dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert relative(found, F.silu(expected) if kind is GroupNormSiLU else expected) <= most
