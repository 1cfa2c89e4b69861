"""What only a GPU can show: the same pictures as on the CPU, to rounding, and training that goes the same way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import load_pipeline
from sfumato.errors import NumericalError
from sfumato.pictures.pixels import psnr
from sfumato.progress import Progress
from sfumato.train.trainer import train
from support.train_toy import ToyTask, toy_config

pytestmark = pytest.mark.gpu

PROMPTS = ("a red heart", "rocket")


@pytest.mark.parametrize(("dtype", "least"), [("float32", 45.0), ("float16", 30.0), ("bfloat16", 20.0)])
def test_pictures_are_the_cpus_to_rounding(dtype: str, least: float) -> None:
    options = {"safety": "off", "watermark": False}
    on_cpu = load_pipeline("pocket", device="cpu", dtype="float32", **options)
    on_gpu = load_pipeline("pocket", device="cuda", dtype=dtype, **options)
    for prompt in PROMPTS:
        expected, found = (pipe.generate(prompt, steps=20, seed=3).images[0] for pipe in (on_cpu, on_gpu))
        assert psnr(np.asarray(found), np.asarray(expected)) > least, prompt


@pytest.mark.parametrize("sampler", ["plms", "k_lms", "euler_ancestral", "dpmpp_2m", "dpmpp_sde", "unipc"])
def test_samplers_draw_the_same_noise_on_both(sampler: str) -> None:
    pictures = [
        np.asarray(
            load_pipeline("pocket", device=device, dtype="float32", safety="off", watermark=False)
            .generate(PROMPTS[0], steps=8, seed=1, sampler=sampler)
            .images[0]
        )
        for device in ("cpu", "cuda")
    ]
    assert psnr(pictures[1], pictures[0]) > 40.0


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("sampler", ["plms", "euler_ancestral", "dpmpp_2m_sde"])
def test_no_step_waits_for_the_device(sampler: str, engine: str) -> None:
    """From the first step, in which graphs are recorded, to the last: torch raises where it would wait."""
    pipe = load_pipeline("pocket", device="cuda", dtype="float16", engine=engine, safety="off", watermark=False)
    steps, seen = 6, []

    def forbid(event: Progress) -> None:
        if event.stage == "denoise":
            seen.append(event.step)
            torch.cuda.set_sync_debug_mode("error" if event.step < steps else "default")

    try:
        pipe.generate(PROMPTS[0], steps=steps, sampler=sampler, on_progress=forbid)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen[-1] == steps


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("part", ["unet", "autoencoder"])
def test_nan_is_found_and_named(part: str, engine: str) -> None:
    pipe = load_pipeline("pocket", device="cuda", dtype="float32", engine=engine, safety="off", watermark=False)
    layer = {"unet": "up_blocks.0.resnets.0.conv1", "autoencoder": "decoder.mid_block.resnets.1.conv2"}[part]
    with torch.no_grad():
        getattr(pipe.model, part).get_submodule(layer).weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(NumericalError, match=rf"first in its layer {layer}\b"):
        pipe.generate(PROMPTS[0], steps=3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_goes_as_on_the_cpu_and_resumes_there(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # cuDNN may add up a kernel's gradient in any order otherwise, and Adam makes much of little differences.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    config = toy_config(steps=12, precision=precision)
    cuda = torch.device("cuda")
    whole = train(ToyTask(config), config, tmp_path / "whole", device=cuda).state.snapshot()
    first = train(ToyTask(config), config, tmp_path / "parts", device=cuda, minutes=0.0)
    assert first.state.step < 12
    resumed = train(ToyTask(config), config, tmp_path / "parts", device=cuda).state.snapshot()
    for name, tensor in resumed.items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-3)
    if precision == "float32":
        on_cpu = train(ToyTask(config), config, tmp_path / "cpu").state.module.state_dict()
        # A bias before a batch norm has no gradient but rounding's, which Adam makes steps of; the norm's mean follows.
        for name in on_cpu.keys() - {"0.bias", "1.running_mean"}:
            tensor = on_cpu[name]
            torch.testing.assert_close(whole["model." + name].to(tensor.dtype), tensor, rtol=1e-2, atol=1e-2)
