"""`Request`: the one description of a picture, for the library, the command line, the metadata and `replay`."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Self

from sfumato.diffusion.catalog import PROFILES, SAMPLERS, check_choice
from sfumato.errors import InvalidRequest

MAX_STEPS = 1000
MAX_SIDE = 8192
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """An input picture, named by its content: SHA-256 of the file, size in pixels, and where it was last seen."""

    sha256: str
    width: int
    height: int
    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything that decides one picture's pixels, given a model and a machine.

    Validated when made (`InvalidRequest` names the field); `to_json` and `from_json` are exact inverses.
    `width` and `height` are pixels, None for the model's own size; `spacing` None is the profile's choice for the
    sampler; `steps` is ignored by `dpm_adaptive`, which follows `rtol` and `atol`; `strength` counts only with an
    `init_image`; the guidance interval is a closed range of σ outside which guidance is off.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 50
    sampler: str = "plms"
    spacing: str | None = None
    profile: str = "diffusers"
    eta: float = 0.0
    rtol: float = 0.05
    atol: float = 0.0078
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    width: int | None = None
    height: int | None = None
    model: str = "pocket"
    vae: str | None = None
    noise: Literal["cpu", "cuda", "generator"] = "cpu"
    clip_skip: int = 0
    prompt_syntax: Literal["plain", "weighted"] = "plain"
    long_prompts: Literal["warn", "chunk"] = "warn"
    variation_seed: int | None = None
    variation_strength: float = 0.0
    init_image: ImageSource | None = None
    strength: float = 0.75
    mask: ImageSource | None = None
    upscale: float = 1.0
    upscale_strength: float = 0.6

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            if not isinstance(getattr(self, name), str):
                raise InvalidRequest(f"{name} must be text, not {type(getattr(self, name)).__name__}")
        check_choice("sampler", self.sampler, SAMPLERS)
        check_choice("profile", self.profile, PROFILES)
        check_choice("noise", self.noise, ("cpu", "cuda", "generator"))
        check_choice("prompt_syntax", self.prompt_syntax, ("plain", "weighted"))
        check_choice("long_prompts", self.long_prompts, ("warn", "chunk"))
        self._check_integer("seed", 0, MAX_SEED)
        self._check_integer("steps", 1, MAX_STEPS)
        self._check_integer("clip_skip", 0, 11)
        if self.variation_seed is not None:
            self._check_integer("variation_seed", 0, MAX_SEED)
        self._check_number("eta", 0.0, 1.0)
        self._check_number("rtol", 1e-6, 1.0)
        self._check_number("atol", 1e-6, 1.0)
        self._check_number("guidance_scale", 0.0, 1000.0)
        self._check_number("guidance_rescale", 0.0, 1.0)
        self._check_number("variation_strength", 0.0, 1.0)
        self._check_number("strength", 0.0, 1.0)
        self._check_number("upscale", 1.0, 8.0)
        self._check_number("upscale_strength", 0.0, 1.0)
        for name in ("width", "height"):
            if getattr(self, name) is not None:
                self._check_side(name)
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0.0 <= low < high:
                raise InvalidRequest(f"guidance_interval {low}..{high} must rise from a σ ≥ 0")
        if self.mask is not None and self.init_image is None:
            raise InvalidRequest("mask needs an init_image to apply to")

    def _check_integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidRequest(f"{name} {value!r} must be a whole number from {low} to {high}")

    def _check_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InvalidRequest(f"{name} {value!r} must be a number from {low:g} to {high:g}")
        if not low <= value <= high:
            raise InvalidRequest(f"{name} {value:g} must be from {low:g} to {high:g}")
        object.__setattr__(self, name, float(value))

    def _check_side(self, name: str) -> None:
        self._check_integer(name, 8, MAX_SIDE)
        value = getattr(self, name)
        if value % 8:
            lower, upper = max(8, value // 8 * 8), value // 8 * 8 + 8
            raise InvalidRequest(f"{name} {value} is not a multiple of 8: use {lower} or {upper}")

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """One line of JSON, keys in the order of the fields."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`. Unknown fields are `InvalidRequest`: they could change the picture."""
        if not isinstance(values, dict):
            raise InvalidRequest(f"a request is an object of fields, not {type(values).__name__}")
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise InvalidRequest(f"a request has no field {unknown[0]!r}")
        if "prompt" not in values:
            raise InvalidRequest("a request needs a prompt")
        values = dict(values)
        try:
            for name in ("init_image", "mask"):
                if values.get(name) is not None:
                    values[name] = ImageSource(**values[name])
            if values.get("guidance_interval") is not None:
                low, high = values["guidance_interval"]
                values["guidance_interval"] = (float(low), float(high))
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"a request's {name if 'name' in locals() else 'field'} is malformed: {error}") from error
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InvalidRequest(f"a request must be JSON: {error}") from error
        return cls.from_dict(values)
