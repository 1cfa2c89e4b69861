"""What the pipelines' calls have in common: their keyword arguments, and plain values out of what scripts pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch

from sfumato.errors import InvalidRequest

Prompts = str | Sequence[str]
GeneratorOrList = torch.Generator | Sequence[torch.Generator]

OUTPUT_TYPES = ("pil", "np", "numpy", "np.array", "pt", "latent")
# They say how the callback is called, and a callback itself is refused.
_WITHOUT_EFFECT = frozenset({"callback_steps", "callback_on_step_end_tensor_inputs"})
_NUMBERS: dict[str, tuple[Any, str]] = {
    "guidance_scale": (int | float, "a number"),
    "eta": (int | float, "a number"),
    "num_images_per_prompt": (int, "a whole number"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Keyword arguments of every call, with diffusers' defaults.

    `generator` is one that fills the whole batch or a list with one a picture. `output_type` "np" ("numpy", "np.array")
    is float32 (B, H, W, 3) from 0 to 1, in steps of 1/255, "pt" the same as a tensor (B, 3, H, W) on the CPU, and
    "latent" the scaled latents (B, C, h, w) before decoding, which no safety checker sees. `eta` counts only under
    `DDIMScheduler`. Wrong types are `InvalidRequest`.
    """

    guidance_scale: float = 7.5
    negative_prompt: Prompts | None = None
    num_images_per_prompt: int = 1
    eta: float = 0.0
    generator: GeneratorOrList | None = None
    output_type: str = "pil"
    return_dict: bool = True
    clip_skip: int | None = None

    def __post_init__(self) -> None:
        for name, (kind, words) in _NUMBERS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise InvalidRequest(f"{name} {value!r} must be {words}")
        generators = self.generator if isinstance(self.generator, list | tuple) else [self.generator]
        for one in generators:
            if not isinstance(one, torch.Generator | None):
                raise InvalidRequest(
                    f"generator {one!r} is no torch.Generator: use torch.Generator().manual_seed(…), or a list of them"
                )
        if self.output_type not in OUTPUT_TYPES:
            raise InvalidRequest(
                f"output_type {self.output_type!r} is not supported: use 'pil', 'np', 'pt' or 'latent'"
            )

    @classmethod
    def of(cls, arguments: Mapping[str, object]) -> Self:
        """Make the options of what a call was given. `InvalidRequest` names an argument we don't have, unless it is
        None."""
        known = {field.name for field in fields(cls)}
        for name, value in arguments.items():
            if name not in known | _WITHOUT_EFFECT and value is not None:
                raise InvalidRequest(f"the argument {name!r} is not supported: leave it out")
        return cls(**{name: plain(value) for name, value in arguments.items() if name in known})


def plain(value: Any) -> Any:
    """A numpy number as Python's own, anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def prompt_pairs(prompt: object, negative: object) -> list[tuple[str, str]]:
    """Each prompt with its negative prompt, of which there may be one for all. Raises `InvalidRequest`."""
    prompts = _texts("prompt", prompt)
    negatives = _texts("negative_prompt", "" if negative is None else negative)
    if isinstance(negative, str | None):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise InvalidRequest(f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one, or one for each")
    return list(zip(prompts, negatives, strict=True))


def _texts(name: str, value: object) -> list[str]:
    texts = []
    for text in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(text, str):
            raise InvalidRequest(f"{name} must be a text or a list of texts, not {type(text).__name__}")
        texts.append(text)
    return texts
