"""Noise: torch's CPU and CUDA streams, independence of the batch, Brownian paths."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from sfumato.diffusion.brownian import BrownianPath, brownian_noise, torchsde_noise
from sfumato.diffusion.noise import (
    SOURCES,
    cpu_noise,
    cuda_noise,
    generator_noise,
    seeded_noise,
    seeds_from,
    white_noise,
)
from sfumato.diffusion.philox import PhiloxStream, philox_4x32_10
from sfumato.errors import InvalidRequest

SHAPE = (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # the known answers that come with Random123 (Salmon et al.), kat_vectors
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = [np.array([word], dtype=np.uint64) for word in counter]
    assert tuple(int(word[0]) for word in philox_4x32_10((words[0], words[1], words[2], words[3]), key)) == expected


def test_cuda_noise_starts_as_on_a_gpu() -> None:
    """`torch.manual_seed(0); torch.randn(4, device="cuda")` as printed by GPUs."""
    drawn = cuda_noise([0])((1, 4)).flatten()
    expected = torch.tensor([-0.92466, -0.42534, -2.64385])
    torch.testing.assert_close(drawn[:3], expected, rtol=0, atol=1e-5)


def test_cuda_noise_is_written_in_the_threads_order() -> None:
    """Element i belongs to thread i mod T; with more than T elements each thread takes its next number."""
    few = PhiloxStream(5, threads=256)
    many = PhiloxStream(5, threads=256).normal((1500,)).numpy()
    first = few.normal((256,)).numpy()
    np.testing.assert_array_equal(many[:256], first)
    # a second draw starts at each thread's next Philox call, which is where the first draw's fifth round would be
    second = few.normal((256,)).numpy()
    np.testing.assert_array_equal(many[1024:1280], second)


def test_normals_have_the_right_moments() -> None:
    drawn = PhiloxStream(3).normal((200_000,)).double()
    assert abs(float(drawn.mean())) < 4 / math.sqrt(200_000)
    assert abs(float(drawn.var()) - 1) < 4 * math.sqrt(2 / 200_000)
    assert abs(float((drawn**4).mean()) - 3) < 4 * math.sqrt(96 / 200_000)


@pytest.mark.parametrize("source", SOURCES)
def test_a_picture_has_the_same_noise_in_any_batch(source: str) -> None:
    batch, alone = seeded_noise(source, [7, 8, 9]), seeded_noise(source, [8])
    for _ in range(3):
        assert torch.equal(batch((3, *SHAPE[1:]))[1:2], alone(SHAPE))


def test_cpu_noise_is_torchs() -> None:
    draw = cpu_noise([11])
    torch_draws = torch.Generator().manual_seed(11)
    for _ in range(2):
        assert torch.equal(draw(SHAPE), torch.randn(SHAPE, generator=torch_draws))


def test_one_generator_fills_the_batch_and_a_list_serves_each() -> None:
    shape = (2, *SHAPE[1:])
    filled = generator_noise(torch.Generator().manual_seed(1))(shape)
    assert torch.equal(filled, torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    listed = generator_noise([torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert torch.equal(listed(shape), cpu_noise([1, 2])(shape))


def test_the_number_of_seeds_must_be_the_number_of_pictures() -> None:
    with pytest.raises(InvalidRequest, match="3 pictures asked of 2 seeds"):
        cpu_noise([1, 2])((3, 4, 8, 8))
    with pytest.raises(InvalidRequest, match="did you mean 'cuda'"):
        seeded_noise("cudda", [1])


def test_noise_leaves_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    cpu_noise([1])(SHAPE)
    cuda_noise([1])(SHAPE)
    brownian_noise([1], torch.zeros(SHAPE), 0.03, 14.6)(5.0, 1.0)
    white_noise(cpu_noise([1]), torch.zeros(SHAPE))(5.0, 1.0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_brownian_path_is_a_function_of_its_seed_alone() -> None:
    asked_first, asked_last = BrownianPath(4, (3,)), BrownianPath(4, (3,))
    value = asked_first(0.3)
    for u in (0.9, 0.1, 0.7, 0.2, 0.8):
        asked_last(u)
    assert torch.equal(value, asked_last(0.3))
    assert not torch.equal(value, BrownianPath(5, (3,))(0.3))


def test_brownian_increments_are_independent_and_as_large_as_the_time_between() -> None:
    path = BrownianPath(0, (20_000,))
    places = (0.0, 0.1, 0.1003, 0.5, 0.95, 1.0)
    values = [path(u).double() for u in places]
    increments = [
        (b - a) / math.sqrt(v - u) for a, b, u, v in zip(values, values[1:], places, places[1:], strict=False)
    ]
    covariance = torch.cov(torch.stack(increments))
    torch.testing.assert_close(covariance, torch.eye(5, dtype=torch.float64), rtol=0, atol=5 * math.sqrt(2 / 20_000))


def test_finer_steps_refine_the_same_path() -> None:
    """The increment over a long step is the sum of those over the short ones in it."""
    like = torch.zeros(2, 1, 4, 4)
    noise = brownian_noise([1, 2], like, 0.03, 14.6)
    levels = [14.0, 9.0, 2.0, 0.5]
    clock = [math.log(level) for level in levels]
    long = noise(levels[0], levels[-1]) * math.sqrt(clock[0] - clock[-1])
    short = [noise(a, b) * math.sqrt(u - v) for a, b, u, v in zip(levels, levels[1:], clock, clock[1:], strict=False)]
    torch.testing.assert_close(long, sum(short[1:], short[0]), rtol=1e-4, atol=1e-5)


def test_brownian_noise_is_the_same_alone_and_in_a_batch() -> None:
    together = brownian_noise([1, 2], torch.zeros(2, 1, 4, 4), 0.03, 14.6)(9.0, 2.0)
    alone = brownian_noise([2], torch.zeros(1, 1, 4, 4), 0.03, 14.6)(9.0, 2.0)
    assert torch.equal(together[1:], alone)


@pytest.mark.filterwarnings("ignore:Should have")
def test_torchsde_noise_is_k_diffusions() -> None:
    """Against the copy of `BrownianTreeNoiseSampler` that diffusers carries."""
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    like = torch.zeros(2, 1, 4, 4)
    levels = [14.614641189575195, 5.0, 1.0, 0.02916753478348255]
    theirs = BrownianTreeNoiseSampler(like, levels[-1], levels[0], seed=[5, 6])
    ours = torchsde_noise([5, 6], like, levels[-1], levels[0])
    for sigma, sigma_next in pairwise(levels):
        torch.testing.assert_close(ours(sigma, sigma_next), theirs(sigma, sigma_next))


def test_seeds_from_a_generator_are_its_next_numbers() -> None:
    drawn = seeds_from(torch.Generator().manual_seed(1), 3)
    assert drawn == seeds_from(torch.Generator().manual_seed(1), 3)
    assert len(set(drawn)) == 3 and all(0 <= seed < 2**63 for seed in drawn)
    generator = torch.Generator().manual_seed(1)
    assert (*seeds_from(generator, 1), *seeds_from(generator, 2)) == drawn
