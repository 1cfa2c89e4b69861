"""Settings that other programs left in their pictures, in their own dialects, by the extra `inspect` (sd-parsers)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.pipeline.metadata import texts_of
from sfumato.runtime import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What another program wrote: its name, the prompts, the model, and the rest by the names it uses, as text."""

    program: str
    prompt: str
    negative_prompt: str
    model: str
    settings: Mapping[str, str]


def settings_of(data: bytes, name: str) -> Settings | None:
    """Settings in the dialect of A1111, ComfyUI, InvokeAI, NovelAI or Fooocus in a picture file's bytes, None where
    there are none; `name` is what errors call it. Raises `MissingExtra` without sd-parsers, `InvalidRequest` where the
    picture is broken.
    """
    parsers = require("sd_parsers.parsers", extra="inspect").MANAGED_PARSERS
    # Its parsers get the text alone: its own file reading has no limits, and mixes up pictures read one after another.
    texts = texts_of(data, name)
    for parser in parsers:
        # On text that isn't their dialect the parsers raise whatever their code runs into.
        try:
            found = parser().parse(dict(texts))
            return _settings(found)
        except Exception:
            continue
    return None


def _settings(found: Any) -> Settings:
    values = {str(key): str(value) for sampler in found.samplers for key, value in sampler.parameters.items()}
    values |= {"sampler": ", ".join(str(sampler.name) for sampler in found.samplers)}
    return Settings(
        program=str(found.generator.value),
        prompt=found.full_prompt,
        negative_prompt=found.full_negative_prompt,
        model=", ".join(sorted(str(model) for model in found.models)),
        settings=values | {str(key): str(value) for key, value in found.metadata.items()},
    )
