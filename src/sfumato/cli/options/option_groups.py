"""Options that several commands share, as the fields of a dataclass that the command is handed."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def with_options(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some dataclasses: for each a parameter of that name, with what was given.

    A field is one of Typer's parameters, `Annotated[type, typer.Option(…)] = default`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = {group: [field.name for field in dataclasses.fields(kind)] for group, kind in groups.items()}

        def run(**arguments: Any) -> None:
            made = {
                group: kind(**{name: arguments.pop(name) for name in names[group]}) for group, kind in groups.items()
            }
            command(**arguments, **made)

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name not in groups]
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        shared = [parameter for kind in groups.values() for parameter in _parameters(kind)]
        run.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate


def _parameters(kind: type) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(kind)
    ]
