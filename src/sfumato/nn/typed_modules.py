"""What a module list holds, by kind: PyTorch's own type says only `Module`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch import nn

Kind = TypeVar("Kind", bound=nn.Module)


def typed_module(module: nn.Module, kind: type[Kind]) -> Kind:
    """Give the module back as what it is; an assertion checks it."""
    assert isinstance(module, kind)
    return module


def typed_modules(modules: Iterable[nn.Module], kind: type[Kind]) -> list[Kind]:
    """Give the modules of a list back as what they are; an assertion checks each."""
    return [typed_module(module, kind) for module in modules]
