"""The `parameters` text that the A1111 web UI writes into pictures and most other programs read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from sfumato.diffusion.profiles import PROFILES
from sfumato.pipeline.provenance import Provenance
from sfumato.pipeline.request import Request

SAMPLER_NAMES: Mapping[str, str] = {
    "plms": "PLMS",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "k_lms": "LMS",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_ancestral": "DPM2 a",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "unipc": "UniPC",
    "deis": "DEIS",
    "ipndm": "IPNDM",
    "lcm": "LCM",
    "dpm_adaptive": "DPM adaptive",
}
# Spacings for which that program has a schedule type; the others are only in our own metadata.
SCHEDULE_NAMES: Mapping[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "align-your-steps": "Align Your Steps",
}
_NOISE_NAMES: Mapping[str, str] = {"cpu": "CPU", "cuda": "NV"}

_NEGATIVE = "Negative prompt:"
# The names' length is bounded so that a hostile text takes linear time.
_SETTING = re.compile(r'(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_FEWEST_SETTINGS = 3  # a last line with fewer is part of the prompt, as that program decides it


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What such a text says: the prompts, and every setting as the text it was, by its name there."""

    prompt: str
    negative_prompt: str
    settings: Mapping[str, str]


def format_parameters(provenance: Provenance) -> str:
    """The text: prompt, negative prompt, one line of settings. Settings at their neutral value are left out.

    The format has no escapes: a line of the prompt that begins with "Negative prompt:" is read back as one.
    """
    request = provenance.request
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"{_NEGATIVE} {request.negative_prompt}")
    settings = _settings(provenance)
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def parse_parameters(text: str) -> Parameters:
    """Read a text of parameters, whoever wrote it. Spaces around lines are dropped; nothing in it is an error."""
    lines = text.strip().split("\n")
    found = _SETTING.findall(lines[-1])
    settings = {name.strip(): _unquoted(value.strip()) for name, value in found}
    if len(settings) >= _FEWEST_SETTINGS:
        lines.pop()
    else:
        settings = {}
    stripped = [line.strip() for line in lines]
    split = next((i for i, line in enumerate(stripped) if line.startswith(_NEGATIVE)), len(stripped))
    negative = [line.removeprefix(_NEGATIVE).strip() for line in stripped[split:]]
    return Parameters(prompt="\n".join(stripped[:split]), negative_prompt="\n".join(negative), settings=settings)


def _settings(provenance: Provenance) -> dict[str, str]:
    request = provenance.request
    spacing = request.spacing or PROFILES[request.profile].spacing[request.sampler]
    settings = {
        "Steps": str(request.steps),
        "Sampler": SAMPLER_NAMES[request.sampler],
        "Schedule type": SCHEDULE_NAMES.get(spacing, ""),
        "CFG scale": "" if request.guidance_scale is None else f"{request.guidance_scale:g}",
        "Seed": str(request.seed),
        "Size": "{}x{}".format(*_base_size(provenance)),
        "Model hash": provenance.model_sha256[:10],
        "Model": provenance.model_name,
        "VAE": PurePath(request.vae or "").name,  # not the folder: it would tell who made the picture
    }
    settings |= _image_settings(request)
    settings |= _noise_settings(request)
    settings["Version"] = f"sfumato {provenance.sfumato}"
    return {name: value for name, value in settings.items() if value}


def _image_settings(request: Request) -> dict[str, str]:
    settings = {}
    if request.init_image is not None:
        settings["Denoising strength"] = f"{request.strength:g}"
    if request.upscale > 1:
        settings |= {"Hires upscale": f"{request.upscale:g}", "Denoising strength": f"{request.upscale_strength:g}"}
    return settings


def _noise_settings(request: Request) -> dict[str, str]:
    settings = {"RNG": _NOISE_NAMES.get(request.noise, "")}
    if request.token_merging:
        settings["Token merging ratio"] = f"{request.token_merging:g}"
    if request.eta:
        settings["Eta"] = f"{request.eta:g}"
    if request.clip_skip:
        settings["Clip skip"] = str(request.clip_skip + 1)  # there, 1 is the last layer
    if request.variation_strength:
        settings["Variation seed"] = str(request.variation_seed or 0)
        settings["Variation seed strength"] = f"{request.variation_strength:g}"
    return settings


def _base_size(provenance: Provenance) -> tuple[int, int]:
    """Width and height in pixels before any upscaling."""
    request = provenance.request
    return (
        request.width or round(provenance.width / request.upscale),
        request.height or round(provenance.height / request.upscale),
    )


def _quoted(value: str) -> str:
    """Quote a text as JSON does where it would break the line apart."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:"\n\r') or value != value.strip() else value


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        text = json.loads(value)
    except ValueError:
        return value
    return text if isinstance(text, str) else value
