"""A whole forward recorded as one CUDA graph for each set of input shapes, and replayed: one launch a step."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_KEPT = 4  # graphs: each holds the memory of its own forward
_WARM_UPS = 3  # before recording: libraries choose their algorithms and allocate on the first calls

Run = Callable[..., Tensor]
Replay = Callable[[], None]
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]
"""Records a forward: the tensor that holds its answer, and what computes it anew from the same inputs' tensors."""


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: tuple[Tensor, ...]
    answer: Tensor
    replay: Replay


def record_cuda(run: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """On the current device. What runs must not look at numbers on the device, nor move any to it."""
    for _ in range(_WARM_UPS):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = run()
    return answer, graph.replay


class Graphed:
    """Called as `run`. Weights are read where they were when a graph was recorded: they may change, not move.

    Answers are copies: the next call doesn't overwrite them. Calls from several threads take turns.
    """

    def __init__(self, run: Run, record: Record = record_cuda) -> None:
        self._run, self._record = run, record
        self._lock = threading.Lock()
        self._graphs: OrderedDict[tuple[tuple[torch.Size, torch.dtype], ...], _Graph] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((value.shape, value.dtype) for value in inputs)
        # Of one kind, whichever mode it is called in: those made in inference mode can't be written to outside it.
        with self._lock, torch.inference_mode(), torch.cuda.device(inputs[0].get_device()):  # -1, the CPU's, is none
            graph = self._graphs.get(key)
            if graph is None:
                graph = self._recorded(inputs)
                self._graphs[key] = graph
                if len(self._graphs) > _KEPT:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            for kept, value in zip(graph.inputs, inputs, strict=True):
                kept.copy_(value, non_blocking=True)
            graph.replay()
            return graph.answer.clone()

    def _recorded(self, inputs: tuple[Tensor, ...]) -> _Graph:
        kept = tuple(value.clone() for value in inputs)
        answer, replay = self._record(lambda: self._run(*kept))
        return _Graph(kept, answer, replay)
