"""What a module list holds, by kind: PyTorch's own type says only `Module`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch import nn

Kind = TypeVar("Kind", bound=nn.Module)


def member(module: nn.Module, kind: type[Kind]) -> Kind:
    """The module itself, checked."""
    assert isinstance(module, kind)
    return module


def members(modules: Iterable[nn.Module], kind: type[Kind]) -> list[Kind]:
    """The modules of a list, checked."""
    return [member(module, kind) for module in modules]
