"""Work captured as one CUDA graph for each set of input shapes, and replayed: one launch a step."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.diffusion.guidance import combined
from sfumato.models.unet_inputs import UNetInputs
from sfumato.runtime import is_of_memory

_KEPT = 4  # graphs: each holds the memory of its own forward
_WARM_UPS = 3  # before capturing: libraries choose their algorithms and allocate on the first calls

_CAPTURING = threading.Lock()  # CUDA forbids one capture to wait for the device while another is under way

Run = Callable[..., Tensor]
Prepare = Callable[[Tensor], Tensor]
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]
"""Captures a forward: the tensor that holds its answer, and what computes it anew from the same inputs' tensors."""


@dataclass(slots=True)
class _Graph:
    inputs: tuple[Tensor, ...]
    static: Tensor | None  # what `prepared` was made from; held, so that no other tensor can be taken for it
    prepared: Tensor | None
    answer: Tensor
    replay: Replay


def capture_cuda(run: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """Capture `run` as a CUDA graph on the current device: its answer, of any shape, and what replays it. What runs
    must not look at numbers on the device, nor move any to it."""
    with _CAPTURING:
        for _ in range(_WARM_UPS):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # torch's own stream for capturing belongs to whichever device was first. Other threads may go on allocating.
        stream = _capture_stream(torch.cuda.current_device())
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            answer = run()
    return answer, graph.replay


@functools.cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """The stream to capture on, one a device: cuBLAS keeps tens of megabytes for each stream it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def as_it_is(static: Tensor) -> Tensor:
    """A `Prepare` that computes nothing, of any shape."""
    return static


class GraphCache:
    """Where the graphs of one engine are kept, who take turns: until the memory for another runs out, or one of the
    `weights` is found elsewhere, since a graph reads them where they were when it was captured."""

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        self.lock = threading.Lock()
        self._weights = tuple(weights)
        self._places: list[int] = []
        self._graphs: list[OrderedDict[Hashable, _Graph]] = []

    def of_one_forward(self) -> OrderedDict[Hashable, _Graph]:
        """Begin a place for the graphs of one forward."""
        self._graphs.append(OrderedDict())
        return self._graphs[-1]

    def clear_if_moved(self) -> None:
        """Let go of all graphs where a weight lies elsewhere than it did."""
        places = [weight.data_ptr() for weight in self._weights]
        if places != self._places:
            self.clear()
            self._places = places

    def clear(self) -> bool:
        """Let go of all graphs; True where there were any."""
        held = any(self._graphs)
        for graphs in self._graphs:
            graphs.clear()
        return held


class Graphed:
    """Called as `run`, whose weights may change and, where the `cache` knows of them, move.

    A number reaches `run` as a tensor of no dimension, float32. `static` does as `prepare(static)`, behind the other
    inputs: made once as long as the same tensor comes, which nobody may write to meanwhile.
    Answers are copies: the next call doesn't overwrite them. Calls from several threads take turns.
    """

    def __init__(
        self, run: Run, *, prepare: Prepare = as_it_is, capture: Capture = capture_cuda, cache: GraphCache | None = None
    ) -> None:
        self._run, self._prepare, self._capture = run, prepare, capture
        self._cache = cache or GraphCache()
        self._graphs = self._cache.of_one_forward()

    def __call__(self, first: Tensor, *others: Tensor | float, static: Tensor | None = None) -> Tensor:
        inputs = (first, *others)
        key = tuple((one.shape, one.dtype) if isinstance(one, Tensor) else None for one in (*inputs, static))
        # Of one kind, whichever mode it is called in: those made in inference mode can't be written to outside it.
        with self._cache.lock, torch.inference_mode(), torch.cuda.device(first.get_device()):  # -1, the CPU's, is none
            self._cache.clear_if_moved()
            graph = self._graphs.get(key)
            if graph is None:
                graph = self._captured(inputs, static)
                self._graphs[key] = graph
                if len(self._graphs) > _KEPT:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            for kept, value in zip(graph.inputs, inputs, strict=True):
                if isinstance(value, Tensor):
                    kept.copy_(value, non_blocking=True)
                else:
                    kept.fill_(value)
            if static is not None and graph.prepared is not None and static is not graph.static:
                graph.prepared.copy_(self._prepare(static))
                graph.static = static
            graph.replay()
            return graph.answer.clone()

    def _captured(self, inputs: Sequence[Tensor | float], static: Tensor | None) -> _Graph:
        try:
            return self._new(inputs, static)
        except (MemoryError, RuntimeError) as error:
            if not is_of_memory(error) or not self._cache.clear():
                raise
        return self._new(inputs, static)  # out here: the error held on to what had been allocated

    def _new(self, inputs: Sequence[Tensor | float], static: Tensor | None) -> _Graph:
        device = next(one.device for one in inputs if isinstance(one, Tensor))
        kept = tuple(
            one.clone() if isinstance(one, Tensor) else torch.full((), one, dtype=torch.float32, device=device)
            for one in inputs
        )
        prepared = None if static is None else self._prepare(static).clone()
        given = kept if prepared is None else (*kept, prepared)
        answer, replay = self._capture(lambda: self._run(*given))
        return _Graph(kept, static, prepared, answer, replay)


class GraphedUNet:
    """An `Engine.unet` in one launch: alone, or with the guidance around it.

    `unet` is called as a `UNet` is, with `prepare(context)` in the place of the context, and computes in `dtype`.
    `shortened` makes the answers with shortcuts: what these leave out differs from call to call, and is no whole graph.
    """

    def __init__(
        self,
        unet: Run,
        dtype: torch.dtype,
        *,
        prepare: Prepare = as_it_is,
        shortened: Callable[[UNetInputs], Tensor] | None = None,
        capture: Capture = capture_cuda,
        cache: GraphCache | None = None,
    ) -> None:
        self._unet, self._dtype, self._shortened = unet, dtype, shortened
        cache = cache or GraphCache()
        self._alone = Graphed(unet, prepare=prepare, capture=capture, cache=cache)
        self._guided = Graphed(self._combined, prepare=prepare, capture=capture, cache=cache)

    def __call__(self, inputs: UNetInputs) -> Tensor:
        """The answers (k·B, C, h, w); with `factors` the guided one, (B, C, h, w) float32."""
        if inputs.shortcuts is not None:
            assert self._shortened is not None, "an engine that doesn't shorten was given shortcuts"
            return self._shortened(inputs)
        if inputs.factors is not None:
            return self._guided(inputs.channels, inputs.timesteps, *inputs.factors, static=inputs.context)
        latents, timesteps, context = inputs.rows(self._dtype)
        return self._alone(latents, timesteps, static=context)

    def _combined(self, x_in: Tensor, timesteps: Tensor, *rest: Tensor) -> Tensor:
        """x_in (B, C, h, w), timesteps (1,), the factors and what `prepare` made → the guided answer (B, C, h, w)."""
        *factors, prepared = rest
        answers = self._unet(x_in.to(self._dtype), timesteps, prepared).float()
        return combined(answers.chunk(len(factors) + 1), factors)
