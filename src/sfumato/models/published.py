"""Reading the JSON that a published model brings: strict about what we don't implement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.errors import InvalidConfig


def require_values(model: str, values: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise `InvalidConfig` if a present field of `values` has a value we don't implement.

    `supported` lists, for fields that are not part of our config, the values that mean what our module does.
    """
    for name, allowed in supported.items():
        if name in values and values[name] not in allowed:
            choices = ", ".join(map(repr, allowed))
            raise InvalidConfig(f"{model}: {name}={values[name]!r} is not supported (supported: {choices})")


def require_fields(model: str, values: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise `InvalidConfig` naming the first of `names` that `values` lacks."""
    for name in names:
        if name not in values:
            raise InvalidConfig(f"{model}: its config has no field {name!r}")


def positive(model: str, **fields: int) -> None:
    """Raise `InvalidConfig` naming the first field that is not a whole number above 0."""
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidConfig(f"{model}: {name}={value!r} must be a whole number above 0")


def divisible(model: str, *, groups: int, channels: tuple[int, ...]) -> None:
    """Raise `InvalidConfig` unless every channel count splits evenly into `groups` (GroupNorm)."""
    for count in channels:
        if count % groups:
            raise InvalidConfig(f"{model}: {count} channels don't divide into {groups} norm groups")
