"""The engines for GPUs against the modules they run, on random weights."""

from __future__ import annotations

import pytest
import torch

from engine_networks import gaussian, relative, tiny_autoencoder, tiny_unet
from sfumato.engines.catalog import start

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-3), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
@pytest.mark.parametrize("name", ["graph", "compile"])
@torch.inference_mode()
def test_engines_match_the_modules(name: str, dtype: torch.dtype, most: float) -> None:
    """At two sizes and several inputs, so that graphs are recorded, kept and replayed."""
    module, pictures = tiny_unet("v1-like"), tiny_autoencoder("v1-like")
    on_gpu, pictures_on_gpu = (tiny_unet("v1-like").to("cuda", dtype), tiny_autoencoder("v1-like").to("cuda", dtype))
    engine = start(name, on_gpu, pictures_on_gpu)
    assert engine.name == name
    for seed, size in enumerate(((16, 24), (9, 16), (16, 24))):
        x, context = gaussian(2, 4, *size, seed=seed), gaussian(2, 7, 24, seed=seed + 9)
        t = torch.full((2,), 981.0 - seed)
        found = engine.denoise(x.to("cuda", dtype), t.cuda(), context.to("cuda", dtype))
        assert relative(found.float().cpu(), module(x, t, context)) <= most
    latents = gaussian(1, 4, 8, 8)
    assert relative(engine.decode(latents.to("cuda", dtype)).float().cpu(), pictures.decode(latents)) <= most
