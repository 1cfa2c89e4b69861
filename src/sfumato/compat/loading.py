"""What the pipelines here have in common: loading, placing, and the switches that change nothing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch

from sfumato.compat.schedulers import Scheduler, scheduler_of
from sfumato.errors import InvalidRequest
from sfumato.pipeline.generate import Pipeline
from sfumato.pipeline.load import load_pipeline
from sfumato.pipeline.model_files import open_model
from sfumato.runtime import DTYPES, resolve_device

logger = logging.getLogger("sfumato")

# How diffusers loads is of no consequence here, or part of a safety checker that is there or not as a whole.
_WITHOUT_EFFECT = frozenset(
    {
        "feature_extractor",
        "force_download",
        "load_safety_checker",
        "low_cpu_mem_usage",
        "mirror",
        "original_config",
        "original_config_file",
        "requires_safety_checker",
        "resume_download",
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
        local_files_only: bool = False,
        scheduler: Scheduler | None = None,
        safety_checker: Literal["model's"] | None = "model's",
        **others: object,
    ) -> Self:
        """Load a model by Hub id, folder, file, or one of sfumato's names.

        `use_auth_token` (or `token`) True is the token the Hub's own tools have stored; `revision="fp16"`, once a
        branch, asks for the half-precision files; `safety_checker=None` turns the checker off. Arguments about how
        diffusers loads (`low_cpu_mem_usage`, `use_safetensors`, `feature_extractor` …) have no effect. Raises
        `InvalidRequest` for any other, and as `sfumato.load_pipeline`.
        """
        unknown = sorted(set(others) - _WITHOUT_EFFECT)
        if unknown:
            raise InvalidRequest(f"from_pretrained: the argument {unknown[0]!r} is not supported: leave it out")
        if revision == "fp16":
            variant, revision = "fp16", None
        tokens = [value for value in (token, use_auth_token) if isinstance(value, str)]
        pipeline = load_pipeline(
            pretrained_model_name_or_path,
            device="cpu",
            dtype=_dtype_name(torch_dtype if torch_dtype is not None else dtype),
            variant=variant,
            token=tokens[0] if tokens else None,
            revision=revision,
            offline=local_files_only,
            safety="off",
            watermark=False,
        )
        if scheduler is None:
            with open_model(pipeline.model.path, variant=variant) as files:
                scheduler = scheduler_of({"_class_name": "PNDMScheduler", **files.scheduler})
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
        """The same model and scheduler under this class."""
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
        """The folder of the checker in use; assign None to turn it off."""
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

    def to(self, *places: str | torch.device | torch.dtype) -> Self:
        """Move the model to a device, a dtype, or both. Raises `InvalidRequest` for a device that isn't there."""
        model = self.pipeline.model
        device, dtype = model.device, model.dtype
        for place in places:
            if isinstance(place, torch.dtype):
                dtype = getattr(torch, _dtype_name(place))
            else:
                device = resolve_device(str(place))
        for module in (model.unet, model.autoencoder, model.text_encoder):
            module.to(device, dtype)
        moved = dataclasses.replace(model, device=device, dtype=dtype)
        self.pipeline = Pipeline(moved, safety=self.pipeline.safety, watermark=False)
        return self

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
