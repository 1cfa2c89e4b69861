"""`Request`: the one description of a picture, for the library, the command line, the metadata and `replay`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, Self, get_args

from sfumato.choices import check_choice
from sfumato.diffusion.profiles import PROFILES
from sfumato.diffusion.sampler_info import SAMPLERS, check_spacing
from sfumato.errors import InvalidRequest
from sfumato.pictures.source import ImageSource

GUIDANCE_SCALE = 7.5  # for a model whose makers recommend none: diffusers' default, and the card's samples'
MAX_STEPS = 1000
MAX_SIDE = 8192
MAX_SEED = 2**63 - 1
MAX_COUNT = 10_000  # pictures of one prompt
MAX_MERGING = 0.75  # three of four tokens (nn/token_merging.py)

Noise = Literal["cpu", "cuda", "generator"]
PromptSyntax = Literal["plain", "weighted"]
LongPrompts = Literal["warn", "chunk"]

_CHOICES: dict[str, Collection[str]] = {
    "sampler": SAMPLERS,
    "profile": PROFILES,
    "noise": get_args(Noise),
    "prompt_syntax": get_args(PromptSyntax),
    "long_prompts": get_args(LongPrompts),
}
_INTEGERS = {
    "seed": (0, MAX_SEED),
    "steps": (1, MAX_STEPS),
    "clip_skip": (0, 11),
    "variation_seed": (0, MAX_SEED),
    "cache_interval": (1, MAX_STEPS),
    "cache_depth": (1, 1000),
}
_NUMBERS = {
    "eta": (0.0, 1.0),
    "rtol": (1e-6, 1.0),
    "atol": (1e-6, 1.0),
    "guidance_scale": (0.0, 1000.0),
    "guidance_rescale": (0.0, 1.0),
    "token_merging": (0.0, MAX_MERGING),
    "variation_strength": (0.0, 1.0),
    "strength": (0.0, 1.0),
    "upscale": (1.0, 8.0),
    "upscale_strength": (0.0, 1.0),
}
_TEXTS = ("prompt", "negative_prompt", "model", "spacing", "vae")
_OPTIONAL = frozenset({"spacing", "vae", "variation_seed", "guidance_scale", "width", "height"})
_SOURCES = ("init_image", "mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything that decides one picture's pixels, given a model and a machine.

    Validated when made (`InvalidRequest` names the field); `to_json` and `from_json` are exact inverses.
    `width` and `height` are pixels, None for the model's own size; `guidance_scale` None is what the model's makers
    recommend, `GUIDANCE_SCALE` where they say nothing; `spacing` None is the profile's choice for the sampler; `steps`
    is ignored by `dpm_adaptive`, which follows `rtol` and `atol`; `strength` counts only with an `init_image`,
    `variation_strength` only with a `variation_seed`; the guidance interval is a closed range of σ outside which
    guidance is off. Every `cache_interval`-th model call runs all of the UNet, the others its `cache_depth` outermost
    layers over what the last whole one found in the depths (DeepCache); `token_merging` is the share of tokens merged
    in the finest self-attentions.
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
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    cache_interval: int = 1
    cache_depth: int = 1
    token_merging: float = 0.0
    width: int | None = None
    height: int | None = None
    model: str = "pocket"
    vae: str | None = None
    noise: Noise = "cpu"
    clip_skip: int = 0
    prompt_syntax: PromptSyntax = "plain"
    long_prompts: LongPrompts = "warn"
    variation_seed: int | None = None
    variation_strength: float = 0.0
    init_image: ImageSource | None = None
    strength: float = 0.75
    mask: ImageSource | None = None
    upscale: float = 1.0
    upscale_strength: float = 0.6

    def __post_init__(self) -> None:
        absent = {name for name in _OPTIONAL if getattr(self, name) is None}
        for name in _TEXTS:
            if name not in absent:
                _check_text(name, getattr(self, name))
        for name, options in _CHOICES.items():
            _check_text(name, getattr(self, name))
            check_choice(name, getattr(self, name), options)
        if self.spacing is not None:
            check_spacing(self.sampler, self.spacing)
        for name, (low, high) in _INTEGERS.items():
            if name not in absent:
                object.__setattr__(self, name, _integer(name, getattr(self, name), low, high))
        for name, (least, most) in _NUMBERS.items():
            if name not in absent:
                object.__setattr__(self, name, _number(name, getattr(self, name), least, most))
        for name in ("width", "height"):
            if name not in absent:
                object.__setattr__(self, name, _side(name, getattr(self, name)))
                _check_upscaled(name, getattr(self, name), self.upscale)
        if self.guidance_interval is not None:
            object.__setattr__(self, "guidance_interval", _interval(self.guidance_interval))
        for name in _SOURCES:
            if not isinstance(getattr(self, name), ImageSource | None):
                raise InvalidRequest(f"{name} must be an ImageSource, not {type(getattr(self, name)).__name__}")
        if self.mask is not None and self.init_image is None:
            raise InvalidRequest("mask needs an init_image to apply to")
        if self.cache_interval > 1 and not SAMPLERS[self.sampler].takes_steps:
            raise InvalidRequest(
                f"cache_interval {self.cache_interval} doesn't go with sampler {self.sampler!r}, which takes the "
                "difference for an error of its steps: choose another sampler",
                field="cache_interval",
            )
        if self.noise == "generator" and self.variation_strength > 0.0:
            raise InvalidRequest(
                f"variation_strength {self.variation_strength:g} doesn't go with noise 'generator', which has no seed "
                "to vary: use noise 'cpu' or 'cuda'"
            )

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        values = dataclasses.asdict(self)
        if self.guidance_interval is not None:
            values["guidance_interval"] = list(self.guidance_interval)
        return values

    def to_json(self) -> str:
        """One line of JSON, keys in the order of the fields."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Make a request of `to_dict`'s values. Unknown fields are `InvalidRequest`: they could change the picture."""
        if not isinstance(values, dict):
            raise InvalidRequest(f"a request is an object of fields, not {type(values).__name__}")
        unknown = sorted(map(str, set(values) - {field.name for field in dataclasses.fields(cls)}))
        if unknown:
            raise InvalidRequest(f"a request has no field {unknown[0]!r}")
        if "prompt" not in values:
            raise InvalidRequest("a request needs a prompt")
        sources = {name: ImageSource.from_dict(values[name]) for name in _SOURCES if values.get(name) is not None}
        return cls(**(values | sources))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a request of `to_json`'s text. Raises `InvalidRequest`."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"a request must be JSON: {error}") from error
        return cls.from_dict(values)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text, not {type(value).__name__}", field=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # Half a surrogate pair: no tokenizer, file or JSON can hold it.
        raise InvalidRequest(
            f"{name} has a broken character at position {error.start}: give valid Unicode", field=name
        ) from error


def _integer(name: str, value: Any, low: int, high: int) -> int:
    whole = isinstance(value, Integral) and not isinstance(value, bool)  # numpy's too
    if not whole or not low <= value <= high:
        raise InvalidRequest(f"{name} {value!r} must be a whole number from {low} to {high}", field=name)
    return int(value)


def _number(name: str, value: Any, low: float, high: float) -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    # The comparison is also what refuses NaN and infinities.
    if not number or not low <= value <= high:
        raise InvalidRequest(f"{name} {value!r} must be a number from {low:g} to {high:g}", field=name)
    return float(value)


def _side(name: str, value: object) -> int:
    side = _integer(name, value, 8, MAX_SIDE)
    if side % 8:
        lower = side // 8 * 8
        raise InvalidRequest(f"{name} {side} is not a multiple of 8: use {lower} or {lower + 8}", field=name)
    return side


def check_effect(request: Request, named: Collection[str] = ()) -> None:
    """Raise `InvalidRequest` for a field without effect: a variation without its seed, or, among the fields that were
    `named` for this very request, a strength without a picture."""
    if request.variation_strength > 0.0 and request.variation_seed is None:
        raise InvalidRequest(
            f"variation_strength {request.variation_strength:g} needs the seed to vary towards: give a variation_seed",
            field="variation_strength",
        )
    if "strength" in named and request.init_image is None:
        raise InvalidRequest(
            f"strength {request.strength:g} needs a picture to start from: give an init_image, or leave it out",
            field="strength",
        )


def counted(requests: Sequence[Request], count: int) -> list[Request]:
    """Make `count` requests of each, picture i on seed + i. Raises `InvalidRequest`."""
    count = _integer("count", count, 1, MAX_COUNT)
    highest = max(request.seed for request in requests)
    if highest + count - 1 > MAX_SEED:
        raise InvalidRequest(f"seed {highest} leaves no room for {count} pictures: seeds end at {MAX_SEED}")
    return [request.replace(seed=request.seed + i) for request in requests for i in range(count)]


def upscaled(side: int, factor: float) -> int:
    """Pixels a side of `side` has after the second pass: the nearest multiple of 8."""
    return round(side * factor / 8) * 8


def _check_upscaled(name: str, side: int, factor: float) -> None:
    if upscaled(side, factor) > MAX_SIDE:
        raise InvalidRequest(
            f"{name} {side} × upscale {factor:g} is more than {MAX_SIDE}: make one of them smaller", field=name
        )


def _interval(value: object) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InvalidRequest(
            f"guidance_interval {value!r} must be two numbers: the lowest and the highest σ", field="guidance_interval"
        )
    low, high = (_number("guidance_interval", end, 0.0, 1e6) for end in value)
    if not low < high:
        raise InvalidRequest(f"guidance_interval {low:g}..{high:g} must rise", field="guidance_interval")
    return low, high
