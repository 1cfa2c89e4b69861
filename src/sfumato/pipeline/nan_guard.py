"""Finding where NaN or infinity came from, so that nobody gets a black picture without a reason."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import NumericalError

# Hooks sit on modules that other threads run too: one search at a time, and each hook heeds its own thread only.
_SEARCHING = threading.Lock()


def check_finite(value: Tensor, what: str, module: nn.Module, run: Callable[[], object]) -> None:
    """Raise `NumericalError` if `value`, which `module` computed, holds NaN or infinity.

    The message names the first layer that made it, found by computing once more (`run`) and watching every layer.
    """
    if bool(torch.isfinite(value).all()):
        return
    layer = _first_bad_layer(module, run)
    where = f"first in its layer {layer}" if layer else "in what it was given"
    advice = "use dtype float32" if value.dtype != torch.float32 or _halved(module) else "verify the model's file"
    raise NumericalError(f"{what} gave NaN or infinity, {where}: {advice} (sfumato models verify checks a model)")


class _FoundError(Exception):
    pass


def _first_bad_layer(module: nn.Module, run: Callable[[], object]) -> str | None:
    """The first leaf layer whose output isn't finite though its inputs are."""
    found: list[str] = []
    searcher = threading.get_ident()

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if threading.get_ident() != searcher:
                return
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                if all(torch.isfinite(x).all() for x in inputs if isinstance(x, Tensor) and x.is_floating_point()):
                    found.append(name)
                raise _FoundError

        return hook

    with _SEARCHING, ExitStack() as stack:
        for name, layer in module.named_modules():
            if not any(layer.children()):
                stack.callback(layer.register_forward_hook(watch(name)).remove)
        with suppress(_FoundError):
            run()
    return found[0] if found else None


def _halved(module: nn.Module) -> bool:
    # Biases and norms have the dtype that is computed in; weights may be as their file stores them.
    return next(p for p in module.parameters() if p.ndim == 1).dtype != torch.float32
