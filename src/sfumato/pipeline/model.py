"""`Model`: the networks, tokenizer and noise schedule of one model, ready to run on one device."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.engines.engine import Engine
from sfumato.engines.registry import start
from sfumato.modelfiles.check_fit import check_fit
from sfumato.modelfiles.identity import ModelIdentity, identity_of
from sfumato.modelfiles.load_options import LoadOptions
from sfumato.modelfiles.model_parts import Part
from sfumato.modelfiles.open_model import open_model
from sfumato.modelfiles.weight_cache import warm_parts
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.clip_text import ClipText
from sfumato.models.unet import UNet
from sfumato.pipeline.memory_mode import settle, tiling_in, warm_fits
from sfumato.pipeline.request import GUIDANCE_SCALE
from sfumato.progress import OnProgress, Progress, ignore
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.runtime import compute_exactly, resolve_device, resolve_dtype
from sfumato.weights.mapper import fill_as_stored


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a pipeline runs. `prediction` is what the UNet answers: "epsilon", "v_prediction" or "sample".

    `identity` says which weights it is, `scheduler` is its scheduler's JSON. `guidance_scale` is for requests that name
    none. `engine` is what runs the UNet and the autoencoder.
    """

    name: str
    path: Path
    vae_path: Path | None
    identity: ModelIdentity = field(repr=False)
    unet: UNet = field(repr=False)
    autoencoder: Autoencoder = field(repr=False)
    engine: Engine
    text_encoder: ClipText = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    noise_schedule: NoiseSchedule = field(repr=False)
    scheduler: Mapping[str, Any] = field(repr=False)
    prediction: str
    safety_checker: Path | None
    requires_safety_checker: bool
    guidance_scale: float
    device: torch.device
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Side in pixels of the pictures the model was trained on."""
        return self.unet.config.sample_size * self.autoencoder.config.factor

    @property
    def inpaints(self) -> bool:
        """Whether the model's UNet takes a mask and the masked picture beside the latents (9 channels in v1)."""
        return self.unet.config.in_channels > self.autoencoder.config.latent_channels

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights that were read, as `ModelIdentity` has it. Raises `CheckpointError`."""
        return self.identity.sha256


def load_model(path: Path, options: LoadOptions, *, name: str, on_progress: OnProgress = ignore) -> Model:
    """Read a model in either layout onto a device, tensor by tensor from the memory map, and start its engine.

    Parts that `weight_cache.warm` has written before are read from there: the same numbers, in less time and memory;
    not where `warm_fits` says that their own files are the smaller choice.

    Raises as `open_model`, `resolve_device`, `engines.registry.start`, `tiling_in` and `settle` do, and `InvalidConfig`
    for parts that don't fit each other.
    """
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    memory, tiling = options.memory, tiling_in(options.memory, options.vae_tiling)
    vae = None if options.vae is None else Path(options.vae)
    compute_exactly(device, dtype)
    with open_model(path, vae=vae, ema=options.ema, variant=options.variant) as files:
        tokenizer, noise_schedule = check_fit(files)
        identity = identity_of(files)
        shapes = (entry.shape for part in files.parts.values() for entry in part.entries)
        with ExitStack() as stack:
            warm = (
                stack.enter_context(warm_parts(files, dtype))
                if warm_fits(shapes, options.engine, memory, device)
                else {}
            )
            for step, (part_name, part) in enumerate(files.parts.items()):
                on_progress(Progress(stage="load", step=step, steps=len(files.parts)))
                _fill(warm.get(part_name, part), dtype, device)
        on_progress(Progress(stage="load", step=len(files.parts), steps=len(files.parts)))
        unet, autoencoder, text_encoder = files.unet.module, files.vae.module, files.text_encoder.module
        started = start(options.engine, unet, autoencoder, tiling=tiling, memory=memory)
        settle((unet, autoencoder, text_encoder), started, memory, device, dtype)
        return Model(
            name=name,
            path=path,
            vae_path=vae,
            identity=identity,
            unet=unet,
            autoencoder=autoencoder,
            engine=started,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            noise_schedule=noise_schedule,
            scheduler=files.scheduler,
            prediction=files.scheduler.get("prediction_type", "epsilon"),
            safety_checker=files.safety_checker,
            requires_safety_checker=files.requires_safety_checker,
            guidance_scale=GUIDANCE_SCALE if files.guidance_scale is None else files.guidance_scale,
            device=device,
            dtype=dtype,
        )


def _fill(part: Part[Any], dtype: torch.dtype, device: torch.device) -> None:
    """Give a network its numbers. What runs in float32 on a CPU can be left in the file: `settle` decides when its
    engine is known."""
    if device.type == "cpu" and dtype is torch.float32:
        fill_as_stored(part.module, part.entries, part.checkpoint, dtype)
    else:
        part.load(dtype=dtype, device=device)
