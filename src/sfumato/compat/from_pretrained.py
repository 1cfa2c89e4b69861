"""What the pipelines here have in common: loading, placing, and the switches that change nothing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch

from sfumato.compat.call_options import plain
from sfumato.compat.scheduler import Scheduler
from sfumato.compat.schedulers import scheduler_of
from sfumato.engines.registry import start
from sfumato.errors import InvalidRequest
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.clip_text import ClipText
from sfumato.models.unet import UNet
from sfumato.pipeline.load_pipeline import load_pipeline
from sfumato.pipeline.model import Model
from sfumato.pipeline.pipeline import Pipeline
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.runtime import DTYPES, resolve_device

logger = logging.getLogger("sfumato")

# How diffusers loads is of no consequence here, or part of a safety checker that is there or not as a whole.
_WITHOUT_EFFECT = frozenset(
    {
        "cache_dir",
        "disable_mmap",
        "feature_extractor",
        "force_download",
        "load_safety_checker",
        "low_cpu_mem_usage",
        "max_memory",
        "mirror",
        "offload_folder",
        "offload_state_dict",
        "original_config",
        "original_config_file",
        "requires_safety_checker",
        "resume_download",
        "trust_remote_code",
        "use_safetensors",
    }
)


class LoadedPipeline:
    """A `sfumato.Pipeline` with a scheduler, under diffusers' method names.

    `pipeline` is the one underneath. Where diffusers does otherwise than sfumato, diffusers wins: there is no
    watermark, a picture that the model's own safety checker flags comes back black, numbers are float32 on the CPU
    until told otherwise, and without a `generator` the noise comes from torch's global one (`torch.manual_seed`).
    """

    def __init__(self, *, pipeline: Pipeline, scheduler: Scheduler) -> None:
        self.pipeline = pipeline
        self.scheduler = scheduler

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        use_auth_token: str | bool | None = None,
        local_files_only: bool | None = False,
        device_map: str | None = None,
        scheduler: Scheduler | None = None,
        safety_checker: Literal["model's"] | None = "model's",
        **others: object,
    ) -> Self:
        """Load a model by Hub id, folder, file, or one of sfumato's names.

        `use_auth_token` (or `token`) True is the token the Hub's own tools have stored; `revision="fp16"`, once a
        branch, asks for the half-precision files; `safety_checker=None` turns the checker off. `device_map` is
        a device's name, or "balanced" for the accelerator if there is one; the model is never spread over several.
        Arguments about how diffusers loads (`low_cpu_mem_usage`, `use_safetensors`, `feature_extractor` …) have no
        effect; nor has `cache_dir`: downloads go where sfumato's always go. Raises `InvalidRequest` for any other that
        is neither None nor False, and as `sfumato.load_pipeline`.
        """
        given = {name for name, value in others.items() if value is not None and value is not False}
        unknown = sorted(given - _WITHOUT_EFFECT)
        if unknown:
            raise InvalidRequest(f"from_pretrained: the argument {unknown[0]!r} is not supported: leave it out")
        if revision == "fp16":
            variant, revision = "fp16", None
        tokens = [value for value in (token, use_auth_token) if isinstance(value, str)]
        pipeline = load_pipeline(
            pretrained_model_name_or_path,
            device=_mapped(device_map),
            dtype=_dtype_name(torch_dtype if torch_dtype is not None else dtype),
            variant=variant,
            token=tokens[0] if tokens else None,
            revision=revision,
            offline=bool(local_files_only),
            safety="off",
            watermark=False,
        )
        if scheduler is None:
            scheduler = scheduler_of({"_class_name": "PNDMScheduler", **pipeline.model.scheduler})
        if not isinstance(scheduler, Scheduler):
            raise InvalidRequest(
                f"scheduler is a {type(scheduler).__module__} {type(scheduler).__name__}: import it from "
                "sfumato.compat.diffusers"
            )
        loaded = cls(pipeline=pipeline, scheduler=scheduler.corrected())
        if safety_checker not in (None, "model's"):
            raise InvalidRequest("safety_checker can only be None (off) or left out (the model's own)")
        if safety_checker is not None and pipeline.model.safety_checker is not None:
            pipeline.safety = "block"
        elif safety_checker is not None and pipeline.model.requires_safety_checker:
            logger.warning("%s has no safety checker here: pictures stay unchecked", pipeline.model.name)
        return loaded

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **arguments: Any) -> Self:
        """Load a `.safetensors` or `.ckpt` file in the original layout; arguments as in `from_pretrained`."""
        return cls.from_pretrained(pretrained_model_link_or_path, **arguments)

    @classmethod
    def from_pipe(cls, pipe: LoadedPipeline) -> Self:
        """Give another pipeline's model and scheduler this class."""
        return cls(**pipe.components)

    @property
    def components(self) -> Mapping[str, Any]:
        """What another class is made of to share this one's model: `Other(**pipe.components)`. Move it before."""
        return {"pipeline": self.pipeline, "scheduler": self.scheduler}

    @property
    def scheduler(self) -> Scheduler:
        """Assigning one that doesn't fit the model, or does what we don't, raises `InvalidConfig`."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Scheduler) -> None:
        model = self.pipeline.model
        self.sampler, self.spacing = scheduler.sampling(model.noise_schedule, model.prediction)
        self._scheduler = scheduler

    @property
    def safety_checker(self) -> Path | None:
        """The folder of the checker in use; assign None to turn it off (anything else raises `InvalidRequest`)."""
        return None if self.pipeline.safety == "off" else self.pipeline.model.safety_checker

    @safety_checker.setter
    def safety_checker(self, value: None) -> None:
        if value is not None:
            raise InvalidRequest("safety_checker can only be set to None, which turns it off")
        self.pipeline.safety = "off"

    @property
    def device(self) -> torch.device:
        return self.pipeline.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipeline.model.dtype

    @property
    def unet(self) -> UNet:
        return self.pipeline.model.unet

    @property
    def vae(self) -> Autoencoder:
        return self.pipeline.model.autoencoder

    @property
    def text_encoder(self) -> ClipText:
        return self.pipeline.model.text_encoder

    @property
    def tokenizer(self) -> Tokenizer:
        """sfumato's own, as the networks are: called and configured otherwise than transformers'."""
        return self.pipeline.model.tokenizer

    @property
    def feature_extractor(self) -> None:
        """Give None: the safety checker here prepares its pictures itself."""

    @property
    def vae_scale_factor(self) -> int:
        """Pixels to a latent's side."""
        return self.pipeline.model.autoencoder.config.factor

    def to(
        self,
        *places: str | int | torch.device | torch.dtype | None,
        device: str | int | torch.device | None = None,
        torch_device: str | int | torch.device | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        silence_dtype_warnings: bool = False,
    ) -> Self:
        """Move the model to a device, a dtype, or both, by position or by name. A number is a CUDA device's;
        `silence_dtype_warnings` has no effect. Raises `InvalidRequest` for a device that isn't there.
        """
        devices: list[str | int | torch.device | None] = [device, torch_device]
        dtypes = [dtype, torch_dtype]
        for given in places:
            if isinstance(given, torch.dtype):
                dtypes.append(given)
            else:
                devices.append(given)
        model = self.pipeline.model
        place, kind = _only("device", devices), _only("dtype", dtypes)
        target = model.device if place is None else resolve_device(_device_name(place))
        number = model.dtype if kind is None else getattr(torch, _dtype_name(kind))
        for module in (model.unet, model.autoencoder, model.text_encoder):
            module.to(target, number)
        moved = dataclasses.replace(
            model,
            device=target,
            dtype=number,
            engine=start("auto", model.unet, model.autoencoder, tiling=model.engine.tiling),
        )
        self._replace(moved)
        return self

    def _replace(self, model: Model) -> None:
        self.pipeline = Pipeline(model, safety=self.pipeline.safety, watermark=False)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: str | torch.device | None = None) -> None:
        """No effect on memory: the whole model moves to the accelerator, if there is one, and stays there."""
        place = device if device is not None else gpu_id if gpu_id is not None else "auto"
        self.to(place)
        logger.warning("nothing is offloaded: the whole model stays on %s", self.device)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: str | torch.device | None = None
    ) -> None:
        """No effect on memory, as `enable_model_cpu_offload`."""
        self.enable_model_cpu_offload(gpu_id, device)

    def enable_vae_tiling(self) -> None:
        """Pictures larger than the model's pass the autoencoder in overlapping tiles, as diffusers blends them."""
        self._tile("blend")

    def disable_vae_tiling(self) -> None:
        """Pictures pass the autoencoder whole, or in strips that give the same."""
        self._tile("auto")

    def _tile(self, tiling: str) -> None:
        model = self.pipeline.model
        engine = start(model.engine.name, model.unet, model.autoencoder, tiling=tiling)
        self._replace(dataclasses.replace(model, engine=engine))

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """No effect: attention here never holds the whole matrix."""

    def disable_attention_slicing(self) -> None:
        """No effect."""

    def enable_xformers_memory_efficient_attention(self, attention_op: object = None) -> None:
        """No effect: torch's own fused attention is always used."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """No effect."""

    def enable_vae_slicing(self) -> None:
        """No effect: pictures are always decoded one by one."""

    def disable_vae_slicing(self) -> None:
        """No effect."""

    def set_progress_bar_config(self, **options: object) -> None:
        """No effect: there is no progress bar."""


def _dtype_name(dtype: torch.dtype | str | None) -> str:
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InvalidRequest(f"torch_dtype {name!r} is not supported: use {', '.join(f'torch.{n}' for n in DTYPES)}")
    return name


def _device_name(place: str | int | torch.device) -> str:
    place = plain(place)
    return f"cuda:{place}" if isinstance(place, int) else str(place)


def _mapped(device_map: object) -> str:
    """Where `from_pretrained` puts a model: diffusers' default is the CPU."""
    if not isinstance(device_map, str | None):
        raise InvalidRequest("device_map must be a device's name or 'balanced': the model is never spread over several")
    return {None: "cpu", "balanced": "auto"}.get(device_map, str(device_map))


def _only(what: str, given: Sequence[Any]) -> Any:
    """The one of `given` that isn't None, if there is one."""
    values = [value for value in given if value is not None]
    if len(values) > 1:
        raise InvalidRequest(f"to: {len(values)} {what}s were given, {values[0]} and {values[1]}: give one")
    return values[0] if values else None
