"""Options that several commands share: flags as data, or a dataclass's fields. The one way to put them on a command."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from sfumato.cli.options.flags import PANELS, Flag


def with_options(**groups: type | Sequence[Flag]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command groups of options, each handed to its parameter of that name.

    A dataclass, whose fields are Typer's parameters, `Annotated[type, typer.Option(…)] = default`, gives one of it with
    what was given. Flags give one mapping, `FlagValues`, of those used, and help shows all in the order of panels.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = {group: _parameters(kind) for group, kind in groups.items()}

        def run(**arguments: Any) -> None:
            taken = {
                group: {option.name: arguments.pop(option.name) for option in members}
                for group, members in options.items()
            }
            command(**arguments, **{group: _made(groups[group], values) for group, values in taken.items()})

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name not in groups]
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters = [*own, *(option for members in options.values() for option in members)]
        if not all(isinstance(kind, type) for kind in groups.values()):
            parameters.sort(key=_place)
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate


def _parameters(kind: type | Sequence[Flag]) -> list[inspect.Parameter]:
    if not isinstance(kind, type):
        return [flag.parameter() for flag in kind]
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(kind)
    ]


def _made(kind: type | Sequence[Flag], values: Mapping[str, Any]) -> object:
    if isinstance(kind, type):
        return kind(**values)
    return {name: _text(value) for name, value in values.items() if value is not None}


def _place(parameter: inspect.Parameter) -> int:
    """Where help shows a parameter: arguments first, then the panels in their order."""
    panel = getattr(parameter.annotation.__metadata__[0], "rich_help_panel", None)
    return PANELS.index(panel) if panel in PANELS else -1


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
