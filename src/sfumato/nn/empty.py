"""Modules without numbers, to be filled from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _SkipInitialisers(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def empty_modules() -> Iterator[None]:
    """Modules built inside have shapes but no storage (the `meta` device).

    Initialisers are skipped too: on `meta` they change nothing, yet the first one costs two seconds of imports.
    """
    with torch.device("meta"), _SkipInitialisers():
        yield
