"""Reading the JSON that a published model brings: strict about what we don't implement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.errors import InvalidConfig

# Far above every published model, and low enough that building the modules of a hostile config takes no time.
_LIMITS = {
    "levels": 8,
    "layers": 200,
    "layers_per_block": 16,
    "depth": 64,
    "vocab_size": 1_000_000,
    "positions": 4096,
    "image_size": 4096,
}
_LIMIT = 65_536  # of channels, and of what else is counted
_LARGEST = 1e6  # of a factor or an ε; not above it, and so not infinite
_SHOWN = 80


def require_values(model: str, values: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise `InvalidConfig` if a present field of `values` has a value we don't implement.

    `supported` lists, for fields that are not part of our config, the values that mean what our module does.
    """
    for name, allowed in supported.items():
        if name in values and values[name] not in allowed:
            choices = ", ".join(map(repr, allowed))
            raise InvalidConfig(f"{model}: {name}={_shown(values[name])} is not supported (supported: {choices})")


def require_fields(model: str, values: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise `InvalidConfig` naming the first of `names` that `values` lacks."""
    for name in names:
        if name not in values:
            raise InvalidConfig(f"{model}: its config has no field {name!r}")


def require_list(model: str, name: str, value: Any) -> tuple[Any, ...]:
    """The list `value` of the field `name` as a tuple, one item a level. Raises `InvalidConfig`."""
    if not isinstance(value, list):
        raise InvalidConfig(f"{model}: {name}={_shown(value)} must be a list")
    positive(model, levels=len(value))
    return tuple(value)


def positive(model: str, **fields: int) -> None:
    """Raise `InvalidConfig` naming the first field that is not a whole number from 1 to what such a field can be."""
    for name, value in fields.items():
        limit = _LIMITS.get(name, _LIMIT)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise InvalidConfig(f"{model}: {name}={_shown(value)} must be a whole number from 1 to {limit}")


def positive_numbers(model: str, **fields: float) -> None:
    """Raise `InvalidConfig` naming the first field that is not a finite number above 0."""
    for name, value in fields.items():
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not known or not 0 < value < _LARGEST:
            raise InvalidConfig(f"{model}: {name}={_shown(value)} must be a number above 0 and below {_LARGEST:g}")


def flags(model: str, **fields: bool) -> None:
    """Raise `InvalidConfig` naming the first field that is neither true nor false."""
    for name, value in fields.items():
        if not isinstance(value, bool):
            raise InvalidConfig(f"{model}: {name}={_shown(value)} must be true or false")


def one_of(model: str, choices: Mapping[str, Any], **fields: str) -> None:
    """Raise `InvalidConfig` naming the first field that is not a name in `choices`."""
    for name, value in fields.items():
        if not isinstance(value, str) or value not in choices:
            raise InvalidConfig(f"{model}: {name}={_shown(value)} is not one of {', '.join(choices)}")


def divisible(model: str, *, groups: int, channels: tuple[int, ...]) -> None:
    """Raise `InvalidConfig` unless every channel count splits evenly into `groups` (GroupNorm)."""
    for count in channels:
        if count % groups:
            raise InvalidConfig(f"{model}: {count} channels don't divide into {groups} norm groups")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
