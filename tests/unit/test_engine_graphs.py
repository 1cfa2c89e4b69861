"""What is kept and copied around recorded forwards, with a recorder that needs no GPU: it computes anew on replay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.engines.graphs import Graphed, Replay


class Recorder:
    """Records as CUDA does: one answer's tensor, written to by each replay."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        self.recorded += 1
        answer = torch.full_like(run(), torch.nan)  # nothing is computed while a graph is recorded

        def replay() -> None:
            self.replayed += 1
            answer.copy_(run())

        return answer, replay


def double(x: Tensor, y: Tensor) -> Tensor:
    return 2 * x + y


def test_each_shape_is_recorded_once_and_answers_stay() -> None:
    recorder = Recorder()
    graphed = Graphed(double, recorder)
    cases = [(value, size) for value in (1.0, 2.0, 3.0) for size in (2, 3)]
    answers = [(graphed(torch.full((size,), value), torch.ones(size)), 2 * value + 1, size) for value, size in cases]
    for answer, expected, size in answers:
        assert torch.equal(answer, torch.full((size,), expected))
    assert (recorder.recorded, recorder.replayed) == (2, 6)


def test_dtypes_are_told_apart_and_inputs_are_not_written_to() -> None:
    recorder = Recorder()
    graphed = Graphed(double, recorder)
    x, y = torch.ones(2), torch.zeros(2)
    assert graphed(x, y).dtype is torch.float32
    assert graphed(x.half(), y.half()).dtype is torch.float16
    graphed(x + 1, y)
    assert torch.equal(x, torch.ones(2))
    assert recorder.recorded == 2


def test_the_longest_unused_graph_goes_first() -> None:
    recorder = Recorder()
    graphed = Graphed(double, recorder)
    for size in (1, 2, 3, 4, 1, 5, 1):  # 2 is the oldest when 5 comes
        graphed(torch.ones(size), torch.ones(size))
    assert recorder.recorded == 5
    graphed(torch.ones(2), torch.ones(2))
    assert recorder.recorded == 6


def test_calls_in_and_outside_inference_mode_share_a_graph() -> None:
    recorder = Recorder()
    graphed = Graphed(double, recorder)
    with torch.inference_mode():
        graphed(torch.ones(2), torch.ones(2))
    assert torch.equal(graphed(torch.ones(2), torch.zeros(2)), torch.full((2,), 2.0))
    assert recorder.recorded == 1
