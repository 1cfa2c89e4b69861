"""Who can take part: our engines and presets as their catalogs have them, and the programs we are compared with."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sfumato.bench.bench_plan import What
from sfumato.engines.names import ENGINES
from sfumato.errors import InvalidRequest
from sfumato.pipeline.presets import PRESETS

Kind = Literal["engine", "preset", "diffusers", "stable-diffusion.cpp"]

# `auto` is one of the others; these are only worth their time where somebody asks for them.
_NOT_ENGINES = frozenset({"auto"})
_ONLY_IF_NAMED = frozenset({"winograd-plain", "compile", "graph", "diffusers-compile", "diffusers-bf16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to make pictures that is measured; `packages` are what it imports, `extra` of ours brings them. `dtype`
    None is the plan's."""

    name: str
    kind: Kind
    about: str
    packages: tuple[str, ...] = ()
    extra: str | None = None
    dtype: str | None = None
    compiled: bool = False

    def missing(self) -> str:
        """What to do before the contender can run here, "" where it can."""
        lacking = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f"pip install 'sfumato[{self.extra}]'" if lacking else ""


_OTHERS = (
    Contender(
        name="diffusers",
        kind="diffusers",
        about="diffusers as it is",
        packages=("diffusers", "transformers"),
        extra="bench",
    ),
    Contender(
        name="diffusers-bf16",
        kind="diffusers",
        about="diffusers in bfloat16",
        packages=("diffusers", "transformers"),
        extra="bench",
        dtype="bfloat16",
    ),
    Contender(
        name="diffusers-compile",
        kind="diffusers",
        about="diffusers with its UNet and decoder through torch.compile",
        packages=("diffusers", "transformers"),
        extra="bench",
        compiled=True,
    ),
    Contender(
        name="stable-diffusion.cpp",
        kind="stable-diffusion.cpp",
        about="stable-diffusion.cpp through its Python package",
        packages=("stable_diffusion_cpp",),
        extra="bench-cpp",
    ),
)


def catalog() -> dict[str, Contender]:
    """List every contender by name: diffusers first, which the others are compared with."""
    engines = [
        Contender(
            name=name,
            kind="engine",
            about=about,
            packages=("openvino",) if name.startswith("openvino") else (),
            extra="openvino" if name.startswith("openvino") else None,
        )
        for name, about in ENGINES.items()
        if name not in _NOT_ENGINES
    ]
    presets = [
        Contender(name=name, kind="preset", about=f"the preset {name}: {preset.description}")
        for name, preset in PRESETS.items()
    ]
    first, *rest = _OTHERS
    return {contender.name: contender for contender in (first, *engines, *presets, *rest)}


def choose(names: Sequence[str] = (), *, what: Sequence[What] = ("step",)) -> list[Contender]:
    """Choose the contenders of these names, in the catalog's order; without names, all but those that take long for
    little, with the presets where nothing but whole pictures is measured.

    Raises `InvalidRequest` for a name that is none, and for a preset where steps are: it is a way to a whole picture.
    """
    known, whole = catalog(), tuple(what) == ("image",)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(known)}"
            raise InvalidRequest(f"contender {name!r} is unknown: {hint}", field="contenders")
        if known[name].kind == "preset" and not whole:
            raise InvalidRequest(f"contender {name!r} is a preset, a way to a whole picture: add --what image")
    if names:
        return [one for name, one in known.items() if name in names]
    return [one for name, one in known.items() if name not in _ONLY_IF_NAMED and (whole or one.kind != "preset")]
