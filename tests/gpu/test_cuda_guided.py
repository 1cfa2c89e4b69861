"""A guided forward in one launch, on a GPU, against the modules on the CPU and the guidance around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato import load_pipeline
from sfumato.diffusion.guidance import combined
from sfumato.engines.engine import Engine
from sfumato.engines.registry import start
from sfumato.models.unet_inputs import UNetInputs
from sfumato.pictures.pixels import psnr
from sfumato.runtime import compute_exactly
from support.engine_networks import gaussian, relative, tiny_autoencoder, tiny_unet

pytestmark = pytest.mark.gpu

SCALE = 3.0


def guided(engine: Engine, x: Tensor, t: float, context: Tensor, *factors: float) -> Tensor:
    timesteps = torch.full((1,), t, device=x.device)
    return engine.unet(UNetInputs(latents=x, timesteps=timesteps, context=context, factors=factors))


@pytest.mark.parametrize(
    ("name", "dtype", "most"),
    [
        ("graph", torch.float32, 1e-3),
        ("graph", torch.float16, 5e-2),
        ("graph", torch.bfloat16, 3e-1),
        ("compile", torch.float16, 5e-2),
    ],
)
@torch.inference_mode()
def test_guided_answers_match_the_modules(name: str, dtype: torch.dtype, most: float) -> None:
    """Two pictures at two sizes and under two contexts in turn, so that graphs, keys and values are made, kept and made
    anew; compiled, at one size of a small network, since that takes longest of all here."""
    compute_exactly(torch.device("cuda"), dtype)
    small = name == "compile"
    module, on_gpu = (tiny_unet("one level" if small else "v1-like") for _ in range(2))
    engine = start(name, on_gpu.to("cuda", dtype), tiny_autoencoder("factor 2").to("cuda", dtype))
    assert engine.name == name
    assert engine.guides
    config = module.config
    contexts = [gaussian(4, 7, config.context_dim, seed=seed) for seed in (20, 21)]
    given = [context.to("cuda", dtype) for context in contexts]
    alone = given[0][2:].clone()
    for seed, (size, which) in enumerate([((16, 24), 0), ((9, 16), 0), ((16, 24), 1), ((16, 24), 1), ((16, 24), 0)]):
        if small and size != (16, 24):
            continue
        x, t = gaussian(2, config.in_channels, *size, seed=seed), 981.0 - seed
        found = guided(engine, x.cuda(), t, given[which], SCALE)
        answers = module(torch.cat([x, x]), torch.full((4,), t), contexts[which]).chunk(2)
        assert found.dtype is torch.float32
        assert relative(found.cpu(), combined(answers, (SCALE,))) <= most
        if not small and which == 0:
            assert relative(guided(engine, x.cuda(), t, alone).cpu(), answers[1]) <= most


@torch.inference_mode()
def test_recording_a_graph_is_no_wait_that_torch_forbids() -> None:
    unet = tiny_unet("v1-like").to("cuda", torch.float16)
    engine = start("graph", unet, tiny_autoencoder("v1-like").to("cuda", torch.float16))
    assert engine.guides
    x, context = gaussian(1, 4, 16, 16).cuda(), gaussian(2, 7, 24).to("cuda", torch.float16)
    try:
        torch.cuda.set_sync_debug_mode("error")
        found = [guided(engine, x, t, context, SCALE) for t in (981.0, 500.0)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(one.isfinite().all() for one in found)
    assert not torch.equal(*found)


def test_auto_is_graph_unless_memory_is_short() -> None:
    names = {mode: load_pipeline("pocket", device="cuda", memory=mode).engine for mode in ("auto", "lean")}
    assert names == {"auto": "graph", "lean": "eager"}


def test_a_preset_that_leaves_something_out_runs_beside_the_graph() -> None:
    options = {"device": "cuda", "dtype": "float32", "safety": "off", "watermark": False}
    on_graph, on_eager = (load_pipeline("pocket", engine=engine, **options) for engine in ("graph", "eager"))
    found, expected = (one.generate("rocket", preset="turbo", seed=1).images[0] for one in (on_graph, on_eager))
    assert psnr(np.asarray(found), np.asarray(expected)) > 30.0


@pytest.mark.parametrize("sampler", ["plms", "heun"])
@pytest.mark.parametrize("interval", [None, (0.5, 5.0)])
def test_pictures_are_those_of_eager(sampler: str, interval: tuple[float, float] | None) -> None:
    pictures = [
        load_pipeline("pocket", device="cuda", dtype="float32", engine=engine, safety="off", watermark=False)
        .generate(["a red heart", "rocket"], steps=8, seed=1, sampler=sampler, guidance_interval=interval)
        .images
        for engine in ("eager", "graph")
    ]
    for expected, found in zip(*pictures, strict=True):
        assert psnr(np.asarray(found), np.asarray(expected)) > 40.0
