"""Work recorded as one CUDA graph for each set of input shapes, and replayed: one launch a step."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.diffusion.guidance import combined
from sfumato.runtime import is_of_memory

_KEPT = 4  # graphs: each holds the memory of its own forward
_WARM_UPS = 3  # before recording: libraries choose their algorithms and allocate on the first calls

_RECORDING = threading.Lock()  # CUDA forbids one recording to wait for the device while another is under way

Run = Callable[..., Tensor]
Prepare = Callable[[Tensor], Tensor]
Replay = Callable[[], None]
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]
"""Records a forward: the tensor that holds its answer, and what computes it anew from the same inputs' tensors."""


@dataclass(slots=True)
class _Graph:
    inputs: tuple[Tensor, ...]
    steady: Tensor | None  # what `prepared` was made from; held, so that no other tensor can be taken for it
    prepared: Tensor | None
    answer: Tensor
    replay: Replay


def record_cuda(run: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """On the current device. What runs must not look at numbers on the device, nor move any to it."""
    with _RECORDING:
        for _ in range(_WARM_UPS):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # torch's own stream for recording belongs to whichever device was first. Other threads may go on allocating.
        stream = _recording_stream(torch.cuda.current_device())
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            answer = run()
    return answer, graph.replay


@functools.cache
def _recording_stream(device: int) -> torch.cuda.Stream:
    """One a device: cuBLAS keeps tens of megabytes for each stream it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def as_it_is(steady: Tensor) -> Tensor:
    """A `Prepare` that computes nothing."""
    return steady


class Shelf:
    """Where the graphs of one engine are kept, who take turns: until the memory for another runs out, or one of the
    `weights` is found elsewhere, since a graph reads them where they were when it was recorded."""

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        self.turn = threading.Lock()
        self._weights = tuple(weights)
        self._places: list[int] = []
        self._rows: list[OrderedDict[Hashable, _Graph]] = []

    def row(self) -> OrderedDict[Hashable, _Graph]:
        """A new one, for the graphs of one forward."""
        self._rows.append(OrderedDict())
        return self._rows[-1]

    def clear_if_moved(self) -> None:
        places = [weight.data_ptr() for weight in self._weights]
        if places != self._places:
            self.clear()
            self._places = places

    def clear(self) -> bool:
        """Whether anything was there."""
        held = any(self._rows)
        for row in self._rows:
            row.clear()
        return held


class Graphed:
    """Called as `run`, whose weights may change and, where the `shelf` knows of them, move.

    A number reaches `run` as a tensor of no dimension, float32. `steady` does as `prepare(steady)`, behind the other
    inputs: made once as long as the same tensor comes, which nobody may write to meanwhile.
    Answers are copies: the next call doesn't overwrite them. Calls from several threads take turns.
    """

    def __init__(
        self, run: Run, *, prepare: Prepare = as_it_is, record: Record = record_cuda, shelf: Shelf | None = None
    ) -> None:
        self._run, self._prepare, self._record = run, prepare, record
        self._shelf = shelf or Shelf()
        self._graphs = self._shelf.row()

    def __call__(self, first: Tensor, *others: Tensor | float, steady: Tensor | None = None) -> Tensor:
        inputs = (first, *others)
        key = tuple((one.shape, one.dtype) if isinstance(one, Tensor) else None for one in (*inputs, steady))
        # Of one kind, whichever mode it is called in: those made in inference mode can't be written to outside it.
        with self._shelf.turn, torch.inference_mode(), torch.cuda.device(first.get_device()):  # -1, the CPU's, is none
            self._shelf.clear_if_moved()
            graph = self._graphs.get(key)
            if graph is None:
                graph = self._recorded(inputs, steady)
                self._graphs[key] = graph
                if len(self._graphs) > _KEPT:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            for kept, value in zip(graph.inputs, inputs, strict=True):
                if isinstance(value, Tensor):
                    kept.copy_(value, non_blocking=True)
                else:
                    kept.fill_(value)
            if steady is not None and graph.prepared is not None and steady is not graph.steady:
                graph.prepared.copy_(self._prepare(steady))
                graph.steady = steady
            graph.replay()
            return graph.answer.clone()

    def _recorded(self, inputs: Sequence[Tensor | float], steady: Tensor | None) -> _Graph:
        try:
            return self._new(inputs, steady)
        except (MemoryError, RuntimeError) as error:
            if not is_of_memory(error) or not self._shelf.clear():
                raise
        return self._new(inputs, steady)  # out here: the error held on to what had been allocated

    def _new(self, inputs: Sequence[Tensor | float], steady: Tensor | None) -> _Graph:
        device = next(one.device for one in inputs if isinstance(one, Tensor))
        kept = tuple(
            one.clone() if isinstance(one, Tensor) else torch.full((), one, dtype=torch.float32, device=device)
            for one in inputs
        )
        prepared = None if steady is None else self._prepare(steady).clone()
        given = kept if prepared is None else (*kept, prepared)
        answer, replay = self._record(lambda: self._run(*given))
        return _Graph(kept, steady, prepared, answer, replay)


class GraphedUNet:
    """A UNet's forward, alone and with the guidance around it, one launch each.

    `unet` is called as a `UNet` is, with `prepare(context)` in the place of the context, and computes in `dtype`.
    """

    def __init__(
        self,
        unet: Run,
        dtype: torch.dtype,
        *,
        prepare: Prepare = as_it_is,
        record: Record = record_cuda,
        shelf: Shelf | None = None,
    ) -> None:
        self._unet, self._dtype = unet, dtype
        shelf = shelf or Shelf()
        self._alone = Graphed(unet, prepare=prepare, record=record, shelf=shelf)
        self._whole = Graphed(self._combined, prepare=prepare, record=record, shelf=shelf)

    def denoise(self, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """As `UNet.forward`; nobody may write to the context as long as the same tensor is given."""
        return self._alone(latents, timesteps, steady=context)

    def guided(self, x_in: Tensor, t: float, context: Tensor, factors: Sequence[float]) -> Tensor:
        """`Engine.guided`."""
        return self._whole(x_in, t, *factors, steady=context)

    def _combined(self, x_in: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
        *factors, context = rest
        answers = self._unet(x_in.to(self._dtype), t[None], context).float()
        return combined(answers.chunk(len(factors) + 1), factors)
