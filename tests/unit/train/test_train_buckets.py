"""Batches of one shape each: what is in them, and a diffusion model trained on pictures of several shapes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_train_diffusion import TOKENIZER, Posteriors, configured

from sfumato.data.buckets import make_buckets
from sfumato.data.samples import Sample
from sfumato.errors import InvalidConfig
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.encoded_latents import BucketedLatents, LatentSample
from sfumato.train.inputs.sample_order import bucketed_index
from sfumato.train.inputs.training_latents import by_bucket
from sfumato.train.tasks.diffusion_task import DiffusionTask
from support.made_data import Pictures, noise


def sizes_and_order(sizes: tuple[int, ...], batch: int, epochs: int) -> list[list[list[int]]]:
    """The batches of each epoch."""
    count = sum(-(-size // batch) for size in sizes)
    numbers = iter(range(epochs * count * batch))
    return [
        [[bucketed_index(next(numbers), sizes, batch, seed=5) for _ in range(batch)] for _ in range(count)]
        for _ in range(epochs)
    ]


@pytest.mark.parametrize("sizes", [(10, 3, 1), (8,), (1, 1), (4, 4, 4)])
def test_an_epoch_has_every_sample_and_each_batch_one_shape(sizes: tuple[int, ...]) -> None:
    group = [number for number, size in enumerate(sizes) for _ in range(size)]
    epochs = sizes_and_order(sizes, 4, 3)
    for batches in epochs:
        assert {index for batch in batches for index in batch} == set(range(sum(sizes)))
        for batch in batches:
            assert len({group[index] for index in batch}) == 1
        seen = Counter(index for batch in batches for index in batch)
        for number, size in enumerate(sizes):  # what fills the last batch up is spread evenly
            times = [seen[index] for index in seen if group[index] == number]
            assert sum(times) == -(-size // 4) * 4
            assert max(times) - min(times) <= 1
    if sum(sizes) > 4:
        assert epochs[0] != epochs[1]


def test_pictures_go_to_the_nearest_shape() -> None:
    shapes = [(64, 64), (64, 30), (31, 62), (60, 66), (128, 60)]
    samples = [
        Sample(key=str(i), captions=("x",), fields={}, picture=noise(width, height, i))
        for i, (width, height) in enumerate(shapes)
    ]
    groups = by_bucket(Pictures(samples), make_buckets(64, multiple=16))
    assert sorted(groups.values()) == [[0, 3], [1, 4], [2]]
    for bucket, indices in groups.items():
        for index in indices:
            width, height = shapes[index]
            assert bucket.width / bucket.height == pytest.approx(width / height, rel=0.3)


class Wide(Posteriors):
    """The same latents, twice as wide."""

    def latents(self, index: int) -> LatentSample:
        sample = super().latents(index)
        return replace(sample, mean=sample.mean.repeat(1, 1, 2), logvar=sample.logvar.repeat(1, 1, 2))


def test_the_task_trains_on_every_shape() -> None:
    task = DiffusionTask(configured(buckets=True), BucketedLatents([Posteriors(5), Wide(3)]), TOKENIZER)
    module = task.build()
    shapes = set()
    for step in range(3):
        draws = Draws(7, step, range(4 * step, 4 * step + 4))
        batch = task.load(draws)
        loss, _ = task.loss(module, batch, draws)
        assert bool(torch.isfinite(loss))
        shapes.add(tuple(batch["latents"].shape))
    assert shapes == {(4, 4, 8, 8), (4, 4, 8, 16)}


def test_what_has_no_shapes_is_refused() -> None:
    task = DiffusionTask(configured(buckets=True), Posteriors(), TOKENIZER)
    with pytest.raises(InvalidConfig, match="several shapes"):
        task.load(Draws(0, 0, range(4)))
    with pytest.raises(InvalidConfig, match="one shape"):
        configured(buckets=True, caption_head=0.1, text_rate=1.0)
