"""`LoadOptions`: how a model is loaded and computes, in one place for the library, the command line and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, get_args, get_type_hints

from sfumato.choices import check_choice
from sfumato.engines.names import ENGINES, MEMORY_MODES, TILINGS
from sfumato.errors import InvalidRequest

MAX_BATCH = 1024

_SWITCHES = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_KIND_NAMES: Mapping[type, str] = {str: "text", bool: "true or false", int: "a whole number"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """A model's compute settings. Raises `InvalidRequest`, with the field's name, for a value that can't be meant.

    `device` and `dtype` are names, "auto" by what the machine has. `vae` is another autoencoder's file or folder;
    `ema` takes the moving average where a file has it beside the last step; `variant` "fp16" prefers half-precision
    files. `engine` is one of `engines.names.ENGINES`, `memory` of `MEMORY_MODES`, `vae_tiling` of `TILINGS` (None: what
    belongs to the memory mode). `batch_size` is how many pictures run together (None: one on a CPU, eight elsewhere).
    `token`, `revision` and `offline` are for the Hub.
    """

    device: str = "auto"
    dtype: str = "auto"
    vae: str | Path | None = None
    ema: bool = True
    variant: str | None = None
    engine: str = "auto"
    memory: str = "auto"
    vae_tiling: str | None = None
    batch_size: int | None = None
    token: str | None = field(default=None, repr=False)
    revision: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.batch_size is not None and not 1 <= self.batch_size <= MAX_BATCH:
            raise InvalidRequest(
                f"batch_size {self.batch_size} must be a whole number from 1 to {MAX_BATCH}", field="batch_size"
            )
        check_choice("engine", self.engine, ENGINES)
        check_choice("memory", self.memory, MEMORY_MODES)
        if self.vae_tiling is not None:
            check_choice("vae_tiling", self.vae_tiling, TILINGS)


def field_kinds(options: type) -> Mapping[str, tuple[type, ...]]:
    """Map the fields of a dataclass of options to the types their values may have; a literal's are those of its
    choices."""
    hints: Mapping[str, Any] = get_type_hints(options)
    return {
        name: tuple(kind if isinstance(kind, type) else type(kind) for kind in get_args(hint) or (hint,))
        for name, hint in hints.items()
    }


def check_kinds(options: object) -> None:
    """Raise `InvalidRequest` for a value of another type than its field's."""
    for name, kinds in field_kinds(type(options)).items():
        value = getattr(options, name)
        whole = int in kinds and isinstance(value, Integral)  # numpy's too
        if not (whole or isinstance(value, kinds)) or (isinstance(value, bool) and bool not in kinds):
            raise InvalidRequest(f"{name} {value!r} must be {_KIND_NAMES.get(kinds[0], 'text')}", field=name)


def option_value(kinds: tuple[type, ...], text: str) -> Any:
    """Read an option from text. What isn't of its kind stays text, for `check_kinds` to refuse with its own message."""
    if bool in kinds:
        return _SWITCHES.get(text.strip().lower(), text)
    if int in kinds:
        try:
            return int(text)
        except ValueError:
            return text
    return text
