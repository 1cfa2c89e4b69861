"""A name that is none of those there are is refused with all of them, and with the nearest: "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from sfumato.errors import InvalidRequest


def check_choice(field: str, value: object, choices: Collection[str]) -> None:
    """Raise `InvalidRequest` unless `value` is one of `choices`; the message gives the nearest and all of them."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value).lower().replace("-", "_"), choices, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ":"
    raise InvalidRequest(f"{field} {value!r} is unknown{hint} choose from {', '.join(choices)}", field=field)
