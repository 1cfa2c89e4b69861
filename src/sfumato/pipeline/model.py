"""`Model`: the networks, tokenizer and noise schedule of one model, ready to run on one device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sfumato.diffusion.denoiser import PREDICTIONS
from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.engines.engine import Engine
from sfumato.engines.registry import start
from sfumato.errors import CheckpointError, InvalidConfig
from sfumato.modelfiles.library_index import model_hash
from sfumato.modelfiles.load_options import LoadOptions
from sfumato.modelfiles.open_model import ModelFiles, Part, naming, open_model, read_tokenizer
from sfumato.modelfiles.weight_cache import warm_parts
from sfumato.models import compvis
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.clip_text import ClipText
from sfumato.models.unet import UNet
from sfumato.pipeline.memory_mode import settle, tiling_in, warm_fits
from sfumato.progress import OnProgress, Progress, ignore
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.runtime import compute_exactly, resolve_device, resolve_dtype
from sfumato.weights.mapper import fill, fill_as_stored

GUIDANCE_SCALE = 7.5  # for a model whose makers recommend none: diffusers' default, and the card's samples'


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """A file that a model was read from. `name` is its place in the model, `stamp` its size and time of change then."""

    name: str
    path: Path
    stamp: tuple[int, int]

    @property
    def sha256(self) -> str:
        """Remembered across runs. Raises `CheckpointError` where the file isn't any more what was read."""
        if _stamp(self.path) != self.stamp:
            raise CheckpointError(f"{self.path} has changed since the model was loaded: load it again")
        return model_hash(self.path)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a pipeline runs. `prediction` is what the UNet answers: "epsilon", "v_prediction" or "sample".

    `weights` are the files it was read from, in the order of the parts; `last_step` says that the UNet is the last
    step of a file that has its moving average too. `guidance_scale` is for requests that name none. `engine` is what
    runs the UNet and the autoencoder.
    """

    name: str
    path: Path
    vae_path: Path | None
    weights: tuple[WeightFile, ...]
    last_step: bool
    unet: UNet = field(repr=False)
    autoencoder: Autoencoder = field(repr=False)
    engine: Engine
    text_encoder: ClipText = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    noise_schedule: NoiseSchedule = field(repr=False)
    prediction: str
    safety_checker: Path | None
    requires_safety_checker: bool
    guidance_scale: float
    device: torch.device
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Side in pixels of the pictures it was trained on."""
        return self.unet.config.sample_size * self.autoencoder.config.factor

    @property
    def inpaints(self) -> bool:
        """Whether its UNet takes a mask and the masked picture beside the latents (9 channels in v1)."""
        return self.unet.config.in_channels > self.autoencoder.config.latent_channels

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights that were read: of the file where one file as it is was all, as other programs show.

        Else of one line a file, as `sha256sum` writes them for a folder (`model_hash`); files from elsewhere have the
        name of their part, and the last step of a file that has averages adds a line. Raises `CheckpointError` for a
        file that has changed since.
        """
        return weights_sha256(self.path, self.weights, last_step=self.last_step)


def weights_sha256(path: Path, weights: Sequence[WeightFile], *, last_step: bool = False) -> str:
    """`Model.sha256` of the model at `path` that was read from `weights`."""
    if not last_step and all(file.path == path for file in weights):
        return weights[0].sha256
    lines = [f"{file.sha256}  {file.name}\n" for file in weights] + ["last step\n"] * last_step
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_model(path: Path, options: LoadOptions, *, name: str, on_progress: OnProgress = ignore) -> Model:
    """Read a model in either layout onto a device, tensor by tensor from the memory map, and start its engine.

    Parts that `warm_start.warm` has written before are read from there: the same numbers, in less time and memory;
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
        weights = files_read(files)
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
            weights=weights,
            last_step=not files.ema and compvis.has_ema(files.unet.checkpoint.tensors),
            unet=unet,
            autoencoder=autoencoder,
            engine=started,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            noise_schedule=noise_schedule,
            prediction=files.scheduler.get("prediction_type", "epsilon"),
            safety_checker=files.safety_checker,
            requires_safety_checker=files.requires_safety_checker,
            guidance_scale=GUIDANCE_SCALE if files.guidance_scale is None else files.guidance_scale,
            device=device,
            dtype=dtype,
        )


def _fill(part: Part[Any], dtype: torch.dtype, device: torch.device) -> None:
    """What runs in float32 on a CPU can be left in the file: `settle` decides when its engine is known."""
    if device.type == "cpu" and dtype is torch.float32:
        fill_as_stored(part.module, part.entries, part.checkpoint, dtype)
    else:
        fill(part.module, part.entries, part.checkpoint, dtype=dtype, device=device)


def check_fit(files: ModelFiles) -> tuple[Tokenizer, NoiseSchedule]:
    """The model's tokenizer and noise schedule. Raises `InvalidConfig` if they, or the parts, can't work together."""
    with naming(files.path):
        noise_schedule = NoiseSchedule.from_config(files.scheduler)
    tokenizer = read_tokenizer(files)
    unet, vae, text = files.unet.module.config, files.vae.module.config, files.text_encoder.module.config
    if unet.context_dim != text.width:
        raise InvalidConfig(
            f"{files.path}: its UNet expects contexts of {unet.context_dim}, its text encoder gives {text.width}"
        )
    if unet.in_channels not in (vae.latent_channels, 2 * vae.latent_channels + 1):
        raise InvalidConfig(
            f"{files.path}: its UNet takes {unet.in_channels} channels, its autoencoder gives {vae.latent_channels}"
        )
    if unet.out_channels != vae.latent_channels:
        raise InvalidConfig(
            f"{files.path}: its UNet answers with {unet.out_channels} channels: variances are unsupported"
        )
    prediction = files.scheduler.get("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise InvalidConfig(f"{files.path}: prediction_type {str(prediction)[:80]!r} is not supported")
    if tokenizer.max_length > text.positions:
        raise InvalidConfig(
            f"{files.path}: its tokenizer makes windows of {tokenizer.max_length} tokens (model_max_length), its text "
            f"encoder takes {text.positions}"
        )
    largest = max(tokenizer.backend.get_vocab().values())
    if largest >= text.vocab_size:
        raise InvalidConfig(
            f"{files.path}: its tokenizer has ids up to {largest}, its text encoder knows {text.vocab_size} tokens"
        )
    return tokenizer, noise_schedule


def files_read(files: ModelFiles) -> tuple[WeightFile, ...]:
    """Each file once for each part read from it, named within the model's folder or, from elsewhere, by the part."""
    return tuple(
        WeightFile(
            name=file.relative_to(files.path).as_posix() if files.path in file.parents else name,
            path=file,
            stamp=_stamp(file),
        )
        for name, part in files.parts.items()
        for file in part.checkpoint.files
    )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns
