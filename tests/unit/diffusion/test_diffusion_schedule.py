"""Schedules as the programs list them, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from sfumato.choices import check_choice
from sfumato.diffusion.explanation import explain
from sfumato.diffusion.profiles import PROFILES, model_calls
from sfumato.diffusion.sampler_info import SAMPLERS, SPACINGS, check_spacing, impossible_pairs
from sfumato.diffusion.schedule import NoiseSchedule, make_schedule
from sfumato.diffusion.spacing import ALIGN_YOUR_STEPS
from sfumato.errors import InvalidConfig, InvalidRequest

NOISE = NoiseSchedule()

# (sampler, profile, spacing, steps): timesteps, and σ where it was worked out by hand from ᾱ
LISTS = [
    ("ddim", "compvis", None, 5, [801, 601, 401, 201, 1], None),
    ("plms", "compvis", None, 7, [995, 853, 711, 569, 427, 285, 143, 1], None),
    ("plms", "diffusers", None, 7, [853, 711, 569, 427, 285, 143, 1], None),
    (
        "ddim",
        "diffusers",
        None,
        7,
        [853, 711, 569, 427, 285, 143, 1],
        [6.570650, 3.485455, 2.047312, 1.272063, 0.790061, 0.440309, 0.041314, 0.029167],
    ),
    (
        "k_lms",
        "diffusers",
        None,
        5,
        [999, 749.25, 499.5, 249.75, 0],
        [14.6146, 4.0861, 1.6156, 0.6952, 0.0292, 0],
    ),
    (
        "euler",
        "diffusers",
        None,
        7,
        [999, 832.5, 666, 499.5, 333, 166.5, 0],
        [14.6146, 5.9489, 2.9183, 1.6156, 0.9324, 0.4936, 0.0292, 0],
    ),
    ("euler", "diffusers", "leading", 5, [801, 601, 401, 201, 1], [5.1344, 2.2929, 1.1682, 0.5741, 0.0413, 0]),
    ("dpmpp_2m", "diffusers", None, 5, [999, 799, 599, 400, 200], None),
    (
        "unipc",
        "diffusers",
        None,
        7,
        [999, 856, 714, 571, 428, 285, 143],
        [14.6146, 6.6686, 3.5282, 2.0617, 1.2762, 0.7901, 0.4403, 0],
    ),
    ("lcm", "diffusers", None, 4, [999, 759, 499, 259], None),
    ("euler", "diffusers", "trailing", 7, [999, 856, 713, 570, 428, 285, 142], None),
    ("ddim", "a1111", None, 5, [801, 601, 401, 201], None),
]


@pytest.mark.parametrize(("sampler", "profile", "spacing", "steps", "timesteps", "sigmas"), LISTS)
def test_published_lists(
    sampler: str,
    profile: str,
    spacing: str | None,
    steps: int,
    timesteps: list[float],
    sigmas: list[float] | None,
) -> None:
    schedule = make_schedule(NOISE, sampler=sampler, steps=steps, spacing=spacing, profile=profile)
    assert list(schedule.timesteps) == pytest.approx(timesteps)
    if sigmas is not None:
        assert list(schedule.sigmas) == pytest.approx(sigmas, abs=6e-5)


def test_scales_on_entering_and_leaving() -> None:
    ddim = make_schedule(NOISE, sampler="ddim", steps=5)
    assert ddim.initial_scale == pytest.approx(math.hypot(1.0, 5.1344), abs=1e-4)
    assert ddim.leaving_scale == pytest.approx(math.sqrt(1 - 0.00085), rel=1e-12)
    assert make_schedule(NOISE, sampler="euler", steps=5).initial_scale == NOISE.sigma_max
    leading = make_schedule(NOISE, sampler="euler", steps=5, spacing="leading")
    assert leading.initial_scale == pytest.approx(math.hypot(1.0, leading.sigmas[0]))
    multistep = make_schedule(NOISE, sampler="dpmpp_2m", steps=5)
    assert multistep.initial_scale == pytest.approx(math.hypot(1.0, NOISE.sigma_max))
    assert make_schedule(NOISE, sampler="dpmpp_2m", steps=5, profile="k-diffusion").initial_scale == NOISE.sigma_max


def test_alphas_cumprod_in_float64() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(NOISE.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-13)


def test_align_your_steps_is_the_published_list() -> None:
    """ln σ interpolated over the step number, as the authors' page does it; ten steps are the list itself."""
    ten = make_schedule(NOISE, sampler="euler", steps=10, spacing="align-your-steps")
    assert ten.sigmas[0] == NOISE.sigma_max
    assert list(ten.sigmas[1:]) == pytest.approx([*ALIGN_YOUR_STEPS[1:10], 0.0])
    twenty = make_schedule(NOISE, sampler="euler", steps=20, spacing="align-your-steps")
    logs = np.interp(np.linspace(0, 1, 21), np.linspace(0, 1, 11), np.log(ALIGN_YOUR_STEPS))
    assert list(twenty.sigmas[1:20]) == pytest.approx(list(np.exp(logs[1:20])))
    with pytest.raises(InvalidRequest, match=r"align-your-steps.*use karras"):
        make_schedule(NoiseSchedule(beta_end=0.02), sampler="euler", steps=10, spacing="align-your-steps")


def test_notes_tell_what_differs_from_what_was_asked() -> None:
    assert "dropped index 1000" in make_schedule(NOISE, sampler="plms", steps=3, profile="compvis").notes[0]
    assert "7 steps become 8" in make_schedule(NOISE, sampler="plms", steps=7, profile="compvis").notes[0]
    assert make_schedule(NOISE, sampler="plms", steps=50, profile="compvis").notes == ()
    whole = make_schedule(NOISE, sampler="ddim", steps=1000)
    assert whole.timesteps[0] == 999 and len(whole.points) == 999
    assert "dropped 1 repeated timestep" in whole.notes[0]


def test_scheduler_configurations_are_read_as_diffusers_does() -> None:
    published = json.loads(
        '{"_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,'
        ' "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,'
        ' "trained_betas": null, "clip_sample": false}'
    )
    assert NoiseSchedule.from_config(published) == NOISE
    bare = NoiseSchedule.from_config({})
    assert (bare.beta_start, bare.beta_end, bare.beta_schedule) == (0.0001, 0.02, "linear")
    trained = NoiseSchedule.from_config({"trained_betas": [0.1, 0.2], "num_train_timesteps": 2})
    assert trained.alphas_cumprod == pytest.approx((0.9, 0.72))


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_start": "many"},
        {"beta_start": -1.0},
        {"trained_betas": [0.1], "num_train_timesteps": 2},
        {"num_train_timesteps": 1},
        {"trained_betas": 3},
    ],
)
def test_bad_configurations_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig):
        NoiseSchedule.from_config(config)


@pytest.mark.parametrize("value", ["dpmpp-2m", "Euler_A", "k_lm"])
def test_unknown_names_get_the_nearest_and_all(value: str) -> None:
    with pytest.raises(InvalidRequest, match="did you mean") as caught:
        check_choice("sampler", value, SAMPLERS)
    assert value in str(caught.value) and ", ".join(SAMPLERS) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_choice("sampler", "zzzzz", SAMPLERS)
    assert "did you mean" not in str(caught.value)


def test_pairs_that_make_no_sense() -> None:
    refused = {(sampler, spacing) for sampler, spacing, _ in impossible_pairs()}
    assert {("plms", "karras"), ("ddim", "karras"), ("lcm", "leading"), ("dpm_adaptive", "karras")} <= refused
    for sampler in SAMPLERS:
        for spacing in SPACINGS:
            if (sampler, spacing) in refused:
                with pytest.raises(InvalidRequest, match=f"{sampler!r} can't use.*; use ") as caught:
                    make_schedule(NOISE, sampler=sampler, steps=5, spacing=spacing)
                assert all(allowed in str(caught.value) for allowed in SAMPLERS[sampler].spacings)
            else:
                check_spacing(sampler, spacing)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range(steps: int) -> None:
    with pytest.raises(InvalidRequest, match="from 1 to 1000"):
        make_schedule(NOISE, sampler="euler", steps=steps)


def test_every_profile_has_a_default_for_every_sampler() -> None:
    for profile in PROFILES.values():
        assert set(profile.spacing) == set(SAMPLERS)
        assert set(profile.samplers) <= set(SAMPLERS)
        assert set(profile.discards_penultimate) | set(profile.final_draws) <= set(SAMPLERS)
        for sampler, spacing in profile.spacing.items():
            check_spacing(sampler, spacing)


def test_explain_says_what_each_profile_would_do() -> None:
    explanation = explain(NOISE, sampler="plms", steps=7)
    assert explanation.chosen.steps == 7
    assert explanation.chosen.model_calls == 8
    by_name = {choice.profile: choice for choice in explanation.profiles}
    assert list(by_name) == list(PROFILES)
    assert (by_name["compvis"].steps, by_name["compvis"].model_calls) == (8, 9)
    assert by_name["compvis"].native and not by_name["k-diffusion"].native
    assert ("plms", "karras", SAMPLERS["plms"].excluded) in explanation.refused
    assert explain(NOISE, sampler="dpm_adaptive", steps=7).chosen.model_calls is None


def test_calls_in_words_and_numbers() -> None:
    assert SAMPLERS["heun"].calls_text == "2n − 1"
    assert SAMPLERS["plms"].calls_text == "n + 1"
    assert SAMPLERS["euler"].calls_text == "n"
    assert model_calls("heun", 20, "diffusers") == 39
    assert (model_calls("plms", 1, "diffusers"), model_calls("plms", 1, "compvis")) == (1, 2)


def test_the_catalog_and_explanations_need_no_torch() -> None:
    script = (
        "import sys, sfumato.diffusion.explanation; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("steps", [7, 10, 11])
def test_align_your_steps_as_a1111_walks_it(steps: int) -> None:
    """`get_align_your_steps_sigmas`: as many σ as steps, the last one above 0 included, then 0."""
    logs = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, 11), np.log(ALIGN_YOUR_STEPS))
    schedule = make_schedule(NOISE, sampler="euler", steps=steps, spacing="align-your-steps", profile="a1111")
    assert list(schedule.sigmas[1:]) == pytest.approx([*np.exp(logs[1:]), 0.0])
