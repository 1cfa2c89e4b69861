"""Presets: named sets of a request's fields that give up likeness to the exact picture for time (docs/presets.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.choices import check_choice
from sfumato.diffusion.sampler_info import SAMPLERS
from sfumato.errors import InvalidRequest
from sfumato.pipeline.request import Request

PRESET = "preset"
"""What flags, settings and axes call the choice of one. It is no field: what it sets is what is recorded."""

_EVERY_SIGMA = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A name for several settings: `fields` are a request's; those that aren't named stay what they are."""

    name: str
    description: str
    fields: Mapping[str, Any]


_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(Request)}
_FAST: Mapping[str, Any] = {
    "sampler": "dpmpp_2m",
    "spacing": "karras",
    "steps": 20,
    "guidance_interval": (0.15, _EVERY_SIGMA),
}
_TURBO: Mapping[str, Any] = {
    **_FAST,
    "cache_interval": 2,
    "cache_depth": 1,
    "token_merging": 0.3,
}

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="exact",
            description="50 PLMS steps, everything computed",
            fields={name: _DEFAULTS[name] for name in _TURBO},
        ),
        Preset(
            name="fast", description="a better solver in 20 steps, without guidance in the last of them", fields=_FAST
        ),
        Preset(
            name="turbo",
            description="fast, with deep features reused every other step and tokens merged",
            fields=_TURBO,
        ),
    )
}


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with those of the preset among them, if there is one, put in its place. The others win over it.

    A preset's spacing goes with its sampler: whoever names another sampler gets that one's own. Raises
    `InvalidRequest` for a name that is no preset.
    """
    own = dict(values)
    name = own.pop(PRESET, None)
    if name is None:
        return own
    chosen = dict(preset_named(name).fields)
    if "sampler" in own:
        del chosen["spacing"]
    return chosen | own


def preset_named(name: object) -> Preset:
    """The preset of this name. Raises `InvalidRequest` for a name that is none."""
    if not isinstance(name, str):
        raise InvalidRequest(f"{PRESET} must be text, not {type(name).__name__}", field=PRESET)
    check_choice(PRESET, name, PRESETS)
    return PRESETS[name]


def gives_up(request: Request) -> str:
    """What a request leaves out beside the exact preset, in words; "" where that is nothing."""
    exact = PRESETS["exact"].fields
    return ", ".join(words(request) for name, words in _WORDS.items() if getattr(request, name) != exact[name])


def _steps(request: Request) -> str:
    exact = PRESETS["exact"].fields
    if not SAMPLERS[request.sampler].takes_steps:
        return f"{request.sampler}'s own steps for {exact['steps']} of {exact['sampler']}"
    return f"{request.steps} steps of {request.sampler} for {exact['steps']} of {exact['sampler']}"


def _guidance(request: Request) -> str:
    assert request.guidance_interval is not None
    low, high = request.guidance_interval
    return f"no guidance below σ {low:g}" + (f" and above {high:g}" if high < _EVERY_SIGMA else "")


_WORDS: Mapping[str, Callable[[Request], str]] = {
    "steps": _steps,
    "guidance_interval": _guidance,
    "cache_interval": lambda request: f"the UNet's depths computed in one call of {request.cache_interval}",
    "token_merging": lambda request: f"{request.token_merging:.0%} of the finest tokens merged",
}
