"""Finding where NaN or infinity came from, so that nobody gets a black picture without a reason."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sfumato.errors import Cancelled, NumericalError
from sfumato.runtime import is_of_memory

# Hooks sit on modules that other threads run too: one search at a time, and each hook heeds its own thread only.
_SEARCHING = threading.Lock()


# Answers that a device may be ahead of the one that is judged. A CUDA device goes on with the next while the host reads
# of the last: it is never waited for with nothing left to do, and never more than two answers ahead.
_AHEAD: Mapping[str, int] = {"cuda": 1}

Check = Callable[[Tensor, Callable[[], object]], None]
"""`check(value, run)`: `value` is what the guarded module computed, and `run` computes it once more."""


@contextmanager
def guarding(what: str, module: nn.Module, device: torch.device) -> Iterator[Check]:
    """A check of every answer of `module`. Raises `NumericalError` if one holds NaN or infinity: on a CPU at once, on
    CUDA when the next one is checked, or at the end.

    The message names the first layer that made it, found by computing once more and watching every layer.
    """
    pending: deque[_Answer] = deque()

    def settle(left: int = 0) -> None:
        while len(pending) > left:
            answer = pending.popleft()
            if not answer.finite():
                pending.clear()  # what was computed from it is no news
                _blame(what, module, answer)

    def check(value: Tensor, run: Callable[[], object]) -> None:
        """Look at `value`, of any shape, now or later; `run` computes it again."""
        pending.append(_Answer(finiteness(value), value.dtype, run))
        settle(_AHEAD.get(device.type, 0))

    try:
        yield check
    except Exception as error:  # a sampler or a callback may have met the numbers first, and stumbled in its own way
        if not isinstance(error, Cancelled) and not is_of_memory(error):
            settle()
        raise
    settle()


@dataclass(frozen=True, slots=True)
class _Answer:
    finite: Callable[[], bool]
    dtype: torch.dtype
    run: Callable[[], object]


def finiteness(value: Tensor) -> Callable[[], bool]:
    """Whether all of a tensor of any shape is finite, when it is asked for. From CUDA the answer is then on its way:
    asking waits for the work up to here, not for what was begun since."""
    largest = value.detach().abs().amax()  # NaN where there is one; fewer kernels than isfinite
    if largest.device.type != "cuda":
        return lambda: math.isfinite(largest)
    told = torch.empty((), dtype=largest.dtype, pin_memory=True)
    told.copy_(largest, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(largest.device))

    def read() -> bool:
        arrived.synchronize()
        return math.isfinite(told)

    return read


def _blame(what: str, module: nn.Module, answer: _Answer) -> NoReturn:
    layer = _first_bad_layer(module, answer.run)
    where = f"first in its layer {layer}" if layer else "in what it was given"
    advice = "use dtype float32" if answer.dtype != torch.float32 or _halved(module) else "verify the model's file"
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
