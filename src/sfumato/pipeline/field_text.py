"""A request's fields from text: for flags, environment variables, files of prompts and the axes of a grid."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sfumato.choices import check_choice
from sfumato.pictures.source import ImageSource
from sfumato.pipeline.request import Request

FIELDS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Request))


def field_value(name: str, text: str) -> Any:
    """The value of the field `name` that `text` writes, typed as `Request` declares it.

    Numbers as Python writes them, an interval as `LOW:HIGH`, "none" for a field that may be unset, an input picture as
    the path of its file (which is read). What isn't a number stays text, for `Request` to refuse with its own message.
    `InvalidRequest` on a name no field has.
    """
    check_choice("the field", name, FIELDS)
    kind, optional = _kinds()[name]
    if optional and text.strip().lower() == "none":
        return None
    return _READERS[kind](text)


def field_text(value: object) -> str:
    """A value as people write it; `field_value` reads it back (an input picture gives the path it came from)."""
    return _WRITERS.get(type(value), str)(value)


def _integer(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _interval(text: str) -> tuple[float | str, ...]:
    return tuple(_number(end) for end in text.split(":"))


def _picture(text: str) -> ImageSource:
    from pathlib import Path

    from sfumato.pictures.untrusted_pictures import open_picture

    return open_picture(Path(text))[1]


_READERS: Mapping[object, Callable[[str], Any]] = {
    str: str,
    int: _integer,
    float: _number,
    tuple: _interval,
    ImageSource: _picture,
}
_WRITERS: Mapping[type, Callable[[Any], str]] = {
    type(None): lambda value: "none",
    float: "{:g}".format,
    tuple: lambda value: ":".join(f"{end:g}" for end in value),
    ImageSource: lambda value: value.path or value.sha256[:10],
}


@cache
def _kinds() -> Mapping[str, tuple[object, bool]]:
    """The type that each field holds, and whether it may be None."""
    return {name: _kind(hint) for name, hint in get_type_hints(Request).items()}


def _kind(hint: Any) -> tuple[object, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(argument for argument in get_args(hint) if argument is not type(None))
        return _kind(inner)[0], True
    if get_origin(hint) is Literal:
        return str, False
    return get_origin(hint) or hint, False
