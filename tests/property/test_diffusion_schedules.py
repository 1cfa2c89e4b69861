"""Every number of steps, sampler, spacing and profile gives a schedule that can be walked."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sfumato.diffusion.beta_quantile import beta_quantile
from sfumato.diffusion.profiles import PROFILES
from sfumato.diffusion.sampler_info import SAMPLERS, SPACINGS
from sfumato.diffusion.schedule import NoiseSchedule, Schedule, make_schedule

NOISE = NoiseSchedule()
PAIRS = [(info.name, spacing) for info in SAMPLERS.values() for spacing in info.spacings]

steps = st.integers(1, 1000)
pairs = st.sampled_from(PAIRS)
profiles = st.sampled_from(list(PROFILES))


def check_walkable(schedule: Schedule) -> None:
    sigmas = schedule.sigmas
    assert all(high > low for high, low in itertools.pairwise(sigmas))
    assert sigmas[0] <= NOISE.sigma_max
    assert schedule.final_sigma >= 0.0
    assert all(0.0 <= t <= 999.0 for t in schedule.timesteps)
    assert all(high >= low for high, low in zip(schedule.timesteps, schedule.timesteps[1:], strict=False))
    assert math.isfinite(schedule.initial_scale) and schedule.initial_scale >= sigmas[0]
    assert 0.99 < schedule.leaving_scale <= 1.0
    times = schedule.times()
    assert [times(point.sigma) for point in schedule.points] == list(schedule.timesteps)


@settings(max_examples=400, deadline=None)
@given(pairs, steps, profiles)
@example(("deis", "leading"), 2, "a1111")  # its list ends far above timestep 1
def test_every_choice_can_be_walked(pair: tuple[str, str], count: int, profile: str) -> None:
    sampler, spacing = pair
    check_walkable(make_schedule(NOISE, sampler=sampler, steps=count, spacing=spacing, profile=profile))


@settings(max_examples=300, deadline=None)
@given(pairs, steps)
def test_steps_are_exactly_as_many_as_asked_or_a_note_says_why(pair: tuple[str, str], count: int) -> None:
    sampler, spacing = pair
    if not SAMPLERS[sampler].takes_steps:
        return
    schedule = make_schedule(NOISE, sampler=sampler, steps=count, spacing=spacing, profile="diffusers")
    if count < 999:
        assert len(schedule.points) == count
    elif len(schedule.points) != count:
        assert any("dropped" in note for note in schedule.notes)
        assert len(schedule.points) >= count - 2


ONE_OF_A_KIND = sorted({(info.grid, info.final): info.name for info in SAMPLERS.values()}.values())


@pytest.mark.parametrize("sampler", ONE_OF_A_KIND)
def test_every_number_of_steps_of_the_default_schedule(sampler: str) -> None:
    for count in range(1, 1001):
        check_walkable(make_schedule(NOISE, sampler=sampler, steps=count))


def test_compvis_lists_every_number_of_steps() -> None:
    """The original's rule, and which numbers of steps it fails on."""
    touched = []
    for count in range(1, 1001):
        theirs = [t + 1 for t in range(0, 1000, 1000 // count)]
        schedule = make_schedule(NOISE, sampler="plms", steps=count, profile="compvis")
        assert list(reversed(schedule.timesteps)) == [t for t in theirs if t < 1000]
        if theirs[-1] == 1000:
            touched.append(count)
            assert any("1000" in note for note in schedule.notes)
    assert touched == [3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)]


@given(st.floats(0.0, 999.0))
def test_sigma_and_t_are_inverses(t: float) -> None:
    assert NOISE.t(NOISE.sigma(t)) == pytest.approx(t, abs=1e-8)


@settings(deadline=None)
@given(st.floats(1e-9, 1.0), st.floats(0.55, 3.0))
def test_beta_quantiles_are_scipys(p: float, shape: float) -> None:
    assert beta_quantile(p, shape) == pytest.approx(float(scipy.stats.beta.ppf(p, shape, shape)), rel=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_training_schedules_of_other_lengths(spacing: str) -> None:
    """`num_train_timesteps` isn't always 1000."""
    noise = NoiseSchedule(num_train_timesteps=200, beta_end=0.06) if spacing != "align-your-steps" else NOISE
    for count in (1, 3, 199, 200):
        schedule = make_schedule(noise, sampler="euler", steps=count, spacing=spacing)
        assert schedule.timesteps[0] <= noise.num_train_timesteps - 1
        assert len(schedule.points) >= count - 1
