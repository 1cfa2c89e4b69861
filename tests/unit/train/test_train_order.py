"""Order and random numbers are functions of the sample's global number alone."""

from __future__ import annotations

import itertools

import torch

from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.sample_order import sample_index


def test_every_epoch_visits_each_sample_once_in_an_order_of_its_own() -> None:
    for size in (1, 2, 7, 64, 1000):
        epochs = [[sample_index(epoch * size + i, size, 5) for i in range(size)] for epoch in range(3)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        if size >= 64:
            assert len({tuple(epoch) for epoch in epochs}) == 3
    first = [sample_index(i, 1000, 5) for i in range(1000)]
    assert first != [sample_index(i, 1000, 6) for i in range(1000)]
    # no trace of the old order: neighbours are as far apart as two random numbers are, a third of the range
    distance = sum(abs(a - b) for a, b in itertools.pairwise(first)) / 999
    assert 300 < distance < 367


def test_a_samples_numbers_depend_on_neither_batch_nor_step() -> None:
    alone = Draws(3, 0, [17])
    among = Draws(3, 9, [2, 17, 40])
    assert torch.equal(alone.normal("noise", (4, 2))[0], among.normal("noise", (4, 2))[1])
    assert torch.equal(alone.uniform("t")[0], among.uniform("t")[1])


def test_purposes_samples_seeds_and_steps_have_numbers_of_their_own() -> None:
    draws = Draws(3, 0, range(50))
    streams = [
        draws.normal("noise", (8,)),
        draws.normal("offset", (8,)),
        Draws(4, 0, range(50)).normal("noise", (8,)),
        Draws(3, 0, range(50, 100)).normal("noise", (8,)),
    ]
    rows = torch.cat(streams)
    correlation = torch.corrcoef(rows.flatten().view(4, -1)) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.2
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    shared = [torch.rand((), generator=Draws(3, step, [0]).shared("turn")) for step in (0, 0, 1)]
    assert shared[0] == shared[1] != shared[2]


def test_normal_and_uniform_have_their_moments() -> None:
    draws = Draws(0, 0, range(4000))
    normal, uniform = draws.normal("noise", (4,)), draws.uniform("t")
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1.0) < 0.03
    assert abs(float(uniform.mean()) - 0.5) < 0.02
    assert 0.0 <= float(uniform.min()) < float(uniform.max()) < 1.0
