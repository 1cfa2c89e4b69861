"""Frozen dataclasses ↔ TOML: strict on the way in, commented with each field's documentation on the way out.

A field's documentation is a text in its annotation: `steps: Annotated[int, "of the whole stage"] = 1000`.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sfumato.errors import InvalidConfig

Config = TypeVar("Config")


def read_config(kind: type[Config], path: Path) -> Config:
    """The config in a TOML file. `InvalidConfig` names the file and the field that is wrong."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"{path} can't be read ({error.strerror}): give the path of a TOML file") from error
    except ValueError as error:
        raise InvalidConfig(f"{path} is not TOML: {error}") from error
    try:
        return from_values(kind, values)
    except InvalidConfig as error:
        raise InvalidConfig(f"{path}: {error}") from error


def from_values(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Build the dataclass `kind` from plain values. Unknown fields and wrong types are `InvalidConfig`."""
    assert dataclasses.is_dataclass(kind)
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InvalidConfig(f"{where + unknown[0]!r} is no option: there are {', '.join(names)}")
    needed = [field.name for field in dataclasses.fields(kind) if _is_needed(field) and field.name not in values]
    if needed:
        raise InvalidConfig(f"{where + needed[0]!r} is missing: it has no default")
    given = {name: _convert(hints[name], value, where + name) for name, value in values.items()}
    return kind(**given)


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def to_values(config: Any) -> dict[str, Any]:
    """Inverse of `from_values`: plain JSON values; what is None is left out, as TOML has no word for it."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None:
            values[field.name] = to_values(value) if dataclasses.is_dataclass(value) else _plain(value)
    return values


def to_toml(config: Any) -> str:
    """The config as TOML, every field with its documentation; `read_config` reads it back the same."""
    return "\n".join(_lines(config, "")) + "\n"


def _lines(config: Any, table: str) -> list[str]:
    lines, tables = [], []
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        comment = [f"# {doc}" for doc in getattr(hints[field.name], "__metadata__", ())]
        if dataclasses.is_dataclass(value):
            tables += ["", *comment, f"[{table}{field.name}]", *_lines(value, f"{table}{field.name}.")]
        elif isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            for item, said in zip(value, [comment, *[[]] * (len(value) - 1)], strict=True):
                tables += ["", *said, f"[[{table}{field.name}]]", *_lines(item, f"{table}{field.name}.")]
        elif value is not None:
            # JSON's numbers, strings, booleans and lists are TOML's too
            lines += [*comment, f"{field.name} = {json.dumps(_plain(value), ensure_ascii=False)}"]
    return lines + tables


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return to_values(value) if dataclasses.is_dataclass(value) else value


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert(next(kind for kind in arguments if kind is not type(None)), value, name)
    if origin is Literal:
        if value not in arguments:
            raise InvalidConfig(f"{name} = {value!r} must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise InvalidConfig(f"{name} = {value!r} must be a list")
        return tuple(_convert(arguments[0], item, name) for item in value)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise InvalidConfig(f"{name} = {value!r} must be a table of options")
        return from_values(hint, value, name + ".")  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise InvalidConfig(f"{name} = {value!r} must be of type {hint.__name__}")
    return value
