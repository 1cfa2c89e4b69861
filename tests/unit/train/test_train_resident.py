"""Data sets that lie on the device, and random numbers drawn there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import sfumato
from sfumato.errors import DataError, InvalidConfig
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.inputs.draws import Draws, _mixed
from sfumato.train.inputs.encoded_latents import LatentSample
from sfumato.train.inputs.resident import colours_swapped, cropped, resident_latents
from sfumato.train.optim.optimizer_step import check_device
from sfumato.train.trainer import train
from support.train_toy import ToyTask, toy_config

CPU = torch.device("cpu")
TOKENIZER = Tokenizer.from_folder(Path(sfumato.__file__).parent / "assets" / "v1" / "tokenizer")


class Several:
    """Random moments; picture i has i % 4 captions."""

    def __len__(self) -> int:
        return 40

    def latents(self, index: int) -> LatentSample:
        generator = torch.Generator().manual_seed(index)
        mean, logvar = torch.randn(2, 4, 6, 6, generator=generator).half()
        return LatentSample(mean=mean, logvar=logvar, captions=tuple(f"thing {index} {i}" for i in range(index % 4)))


def _splitmix64(state: int) -> int:
    """The generator's output for a state, after Steele, Lea and Flood 2014, figure 16."""
    mask = 2**64 - 1
    word = state & mask
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & mask
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & mask
    return word ^ (word >> 31)


def test_words_are_splitmix64s() -> None:
    """Published: the third word of the stream that begins at 1234567."""
    golden = 0x9E3779B97F4A7C15
    assert [_splitmix64(1234567 + i * golden) for i in (1, 2, 3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    wrapped = [(1234567 + i * golden + 2**63) % 2**64 - 2**63 for i in (1, 2, 3)]
    found = _mixed(torch.tensor(wrapped, dtype=torch.int64)).tolist()
    assert [value % 2**64 for value in found] == [_splitmix64(value) for value in wrapped]


@pytest.mark.parametrize("purpose", ["noise", "posterior"])
def test_numbers_have_their_distributions(purpose: str) -> None:
    draws = Draws(5, 0, range(1000, 1200), CPU)
    normal = draws.normal(purpose, (4, 16, 16))
    assert normal.shape == (200, 4, 16, 16)
    assert normal.dtype is torch.float32
    assert scipy.stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-4
    uniform = draws.uniform(purpose, (1024,))
    assert scipy.stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-4
    assert 0.0 <= float(uniform.min()) < float(uniform.max()) < 1.0
    # samples, and places in a sample, know nothing of each other
    for rows in (normal.flatten(1).double(), normal.flatten(1).double().T):
        correlation = np.corrcoef(rows[:100].numpy())
        assert np.abs(correlation - np.eye(100)).max() < 6.0 / rows.shape[1] ** 0.5


def test_a_samples_numbers_are_its_own() -> None:
    whole = Draws(5, 3, range(8), CPU)
    parts = [Draws(5, 9, numbers, CPU) for numbers in (range(5), range(5, 8))]
    assert torch.equal(whole.normal("noise", (3, 4)), torch.cat([part.normal("noise", (3, 4)) for part in parts]))
    assert torch.equal(whole.uniform("t"), torch.cat([part.uniform("t") for part in parts]))
    for other in (Draws(6, 3, range(8), CPU), replace(whole, numbers=range(8, 16))):
        assert not (other.uniform("t") == whole.uniform("t")).any()
    assert not (whole.uniform("t") == whole.uniform("u")).any()


def test_latents_are_drawn_with_one_of_their_own_captions() -> None:
    dataset = Several()
    resident = resident_latents(dataset, TOKENIZER, CPU)
    samples = torch.tensor([3, 3, 39, 1] * 50)
    latents, tokens = resident.drawn(samples, Draws(1, 0, range(200), CPU), dropout=0.2)
    empty = torch.tensor(TOKENIZER.window(""))
    dropped = 0
    for sample, row in zip(samples.tolist(), tokens, strict=True):
        known = [torch.tensor(TOKENIZER.window(caption)) for caption in dataset.latents(sample).captions]
        dropped += torch.equal(row, empty)
        assert any(torch.equal(row, window) for window in [empty, *known])
    assert 15 < dropped < 70
    mean = torch.stack([dataset.latents(i).mean for i in samples.tolist()]).float()
    deviation = torch.exp(0.5 * torch.stack([dataset.latents(i).logvar for i in samples.tolist()]).float())
    error = (latents - mean) / deviation
    assert scipy.stats.kstest(error.flatten().numpy(), "norm").pvalue > 1e-4


def test_squares_are_cut_and_colours_swapped_within_pictures() -> None:
    pictures = torch.arange(6 * 10 * 12 * 3).view(6, 10, 12, 3) % 251
    pictures = pictures.to(torch.uint8)
    samples = torch.tensor([0, 5, 2] * 40)
    draws = Draws(2, 0, range(120), CPU)
    squares = cropped(pictures, samples, 8, draws)
    assert squares.shape == (120, 3, 8, 8)
    corners = set()
    for sample, square in zip(samples.tolist(), squares, strict=True):
        found = [
            (top, left)
            for top in range(3)
            for left in range(5)
            if torch.equal(square.permute(1, 2, 0), pictures[sample, top : top + 8, left : left + 8])
        ]
        assert len(found) == 1
        corners.add(found[0])
    assert len(corners) == 15
    swapped = colours_swapped(squares, 0.5, draws)
    assert torch.equal(swapped.sort(dim=1).values, squares.sort(dim=1).values)
    same = (swapped == squares).flatten(1).all(1).float().mean()
    assert 0.45 < float(same) < 0.72  # half, and a sixth of the others
    with pytest.raises(DataError, match="crop"):
        cropped(pictures, samples, 11, draws)


def test_training_is_the_same_in_parts_and_resumed(tmp_path: Path) -> None:
    config = toy_config(steps=12, resident=True)
    whole = train(ToyTask(config), config, tmp_path / "whole").state.snapshot()
    first = train(ToyTask(config), config, tmp_path / "parts", minutes=0.0)
    assert first.state.step < 12
    resumed = train(ToyTask(config), config, tmp_path / "parts").state.snapshot()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


def test_other_devices_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="resident"):
        check_device(toy_config(resident=True).run, torch.device("mps"))
