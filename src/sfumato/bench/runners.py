"""The contenders inside their processes: how each is loaded, and what it is timed at."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.bench.bench_plan import PROMPT, Plan
from sfumato.bench.contenders import Contender, Kind
from sfumato.runtime import dtype_name, require, resolve_device, resolve_dtype

_FEW = 2  # steps of a picture that only warms up
_STRIDE = 7  # through the thousand timesteps, so that none comes twice: what is kept a timestep is computed each time


class Runner(Protocol):
    """A loaded contender. `runs` is what computes it, which an engine may have chosen itself; `dtype` in which numbers.

    `answer` is what its first step gave, on the CPU; None where it doesn't hand that out.
    """

    runs: str
    dtype: str
    answer: Tensor | None

    def steps(self, count: int) -> float:
        """Take so many guided steps, and give the seconds in all."""
        ...

    def decode(self) -> float:
        """Decode one batch of latents, and give the seconds."""
        ...

    def image(self, steps: int, count: int | None = None) -> float:
        """Generate one batch of pictures from a prompt, of the plan's size or of `count`: seconds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """What a contender gives to be timed: functions of tensors on its device, called as its own pipeline calls them,
    so that what compiles them does it once. `without_gradients` is how that pipeline turns gradients off.
    """

    runs: str
    without_gradients: Callable[[], AbstractContextManager[object]]
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    generate: Callable[[int, int], object]
    context_dim: int
    latent_channels: int
    in_channels: int
    factor: int
    side: int


class TorchRunner:
    """Times functions of tensors; waits for the device before each look at the clock."""

    def __init__(self, networks: Networks, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
        self._networks, self._device = networks, device
        self.runs, self.dtype = networks.runs, dtype_name(dtype)
        side = (plan.size or networks.side) // networks.factor
        draw = torch.Generator().manual_seed(1)
        self._batch = batch = plan.batch

        def made(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw).to(device, dtype)

        # What guidance gives the UNet: the same latents twice, two contexts, one timestep.
        self._latents = made(batch, networks.in_channels, side, side).repeat(2, 1, 1, 1)
        self._context = made(2, 77, networks.context_dim).repeat_interleave(batch, 0)
        self._decoded = made(batch, networks.latent_channels, side, side)
        self._taken = 0
        self.answer: Tensor | None = None

    def steps(self, count: int) -> float:
        with self._networks.without_gradients():
            return self._timed(lambda: self._take(count))

    def decode(self) -> float:
        with self._networks.without_gradients():
            return self._timed(lambda: self._networks.decode(self._decoded))

    def image(self, steps: int, count: int | None = None) -> float:
        return self._timed(lambda: self._networks.generate(steps, count or self._batch))

    def _take(self, count: int) -> None:
        for _ in range(count):
            timestep = 999 - self._taken * _STRIDE % 1000
            timesteps = torch.full((len(self._latents),), float(timestep), device=self._device)
            answer = self._networks.denoise(self._latents, timesteps, self._context)
            if self._taken == 0:
                self.answer = answer.float().cpu()
            self._taken += 1

    def _timed(self, work: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()


def _load_engine(contender: Contender, plan: Plan, model: Path) -> Runner:
    from sfumato.modelfiles.load_options import LoadOptions
    from sfumato.models.unet_inputs import UNetInputs
    from sfumato.pipeline.model import load_model
    from sfumato.pipeline.pipeline import Pipeline
    from sfumato.pipeline.presets import PRESET, with_preset
    from sfumato.pipeline.request import GUIDANCE_SCALE, Request

    is_preset = contender.kind == "preset"
    options = LoadOptions(
        device=plan.device, dtype=contender.dtype or plan.dtype, engine="auto" if is_preset else contender.name
    )
    loaded = load_model(model, options, name="bench")
    pipeline = Pipeline(loaded, safety="off", watermark=False)

    def generate(steps: int, count: int) -> object:
        """Generate in a preset's own number of steps, but to warm up."""
        side = plan.size or loaded.size
        fields: dict[str, Any] = {"sampler": "plms", "steps": steps}
        if is_preset:
            fields = with_preset({PRESET: contender.name} | ({"steps": _FEW} if steps < _FEW else {}))
        request = Request(prompt=PROMPT, width=side, height=side, guidance_scale=GUIDANCE_SCALE, **fields)
        pipeline.batch_size = count
        return pipeline.generate(request, count=count)

    def denoise(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """One call of the UNet on latents (B, C, h, w), timesteps (B,) and context (B, T, width): (B, C, h, w)."""
        return loaded.engine.unet(UNetInputs(latents=latents, timesteps=timesteps, context=context))

    networks = Networks(
        runs=loaded.engine.name,
        without_gradients=torch.inference_mode,
        denoise=denoise,
        decode=loaded.engine.decode,
        generate=generate,
        context_dim=loaded.unet.config.context_dim,
        latent_channels=loaded.autoencoder.config.latent_channels,
        in_channels=loaded.unet.config.in_channels,
        factor=loaded.autoencoder.config.factor,
        side=loaded.size,
    )
    return TorchRunner(networks, plan, loaded.device, loaded.dtype)


def _load_diffusers(contender: Contender, plan: Plan, model: Path) -> Runner:
    from sfumato.pipeline.request import GUIDANCE_SCALE

    diffusers: Any = require("diffusers", extra="bench")
    device = resolve_device(plan.device)
    dtype = resolve_dtype(contender.dtype or plan.dtype, device)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        str(model), safety_checker=None, requires_safety_checker=False, torch_dtype=dtype
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    unet, vae = pipeline.unet, pipeline.vae
    if contender.compiled:
        options: dict[str, Any] = {}
        if device.type == "cuda":  # as diffusers' own guide has it, with CUDA graphs
            options = {"mode": "reduce-overhead", "fullgraph": True}
            unet.to(memory_format=torch.channels_last)
            vae.to(memory_format=torch.channels_last)
        unet.forward, vae.decode = torch.compile(unet.forward, **options), torch.compile(vae.decode, **options)

    def generate(steps: int, count: int) -> object:
        side = {"height": plan.size, "width": plan.size} if plan.size else {}
        generator = torch.Generator().manual_seed(0)
        return pipeline(
            PROMPT,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE_SCALE,
            num_images_per_prompt=count,
            generator=generator,
            **side,
        )

    def denoise(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """One call of the UNet on x (B, C, h, w), t (B,) and context (B, T, width): (B, C, h, w)."""
        nothing: dict[str, Any] = dict.fromkeys(("timestep_cond", "cross_attention_kwargs", "added_cond_kwargs"))
        answer: Tensor = unet(x, t[0].long(), encoder_hidden_states=context, return_dict=False, **nothing)[0]
        return answer

    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    networks = Networks(
        runs=contender.name,
        without_gradients=torch.no_grad,
        denoise=denoise,
        decode=lambda z: vae.decode(z, return_dict=False, generator=None)[0],
        generate=generate,
        context_dim=unet.config.cross_attention_dim,
        latent_channels=vae.config.latent_channels,
        in_channels=unet.config.in_channels,
        factor=factor,
        side=unet.config.sample_size * factor,
    )
    return TorchRunner(networks, plan, device, dtype)


def _load_cpp(contender: Contender, plan: Plan, model: Path) -> Runner:
    from sfumato.bench.stable_diffusion_cpp import load

    return load(plan, model)


_LOADERS: Mapping[Kind, Callable[[Contender, Plan, Path], Runner]] = {
    "engine": _load_engine,
    "preset": _load_engine,
    "diffusers": _load_diffusers,
    "stable-diffusion.cpp": _load_cpp,
}


def load(contender: Contender, plan: Plan, model: Path) -> Runner:
    """Load a contender on the model at that path. Raises whatever loading it raises."""
    return _LOADERS[contender.kind](contender, plan, model)
