"""diffusers' schedulers as descriptions of ours: the same points, and an error for what would differ."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from sfumato.compat import schedulers
from sfumato.compat.schedulers import SCHEDULERS
from sfumato.diffusion.noise import generator_noise, white_noise
from sfumato.diffusion.sampling import enter, plan, run
from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.errors import InvalidConfig, ModelNotFound
from support.diffusion_toy import diffusers_run, relative_error, start_noise, toy_predict

MODEL = NoiseSchedule()
V1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# as CompVis/stable-diffusion-v1-4 publishes it
PUBLISHED = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    **V1,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SPACINGS = [
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing"},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]


def both(name: str, changes: dict[str, Any]) -> tuple[schedulers.Scheduler, Any]:
    return SCHEDULERS[name].from_config(PUBLISHED, **changes), getattr(diffusers, name).from_config(
        PUBLISHED, **changes
    )


def takes(name: str, changes: dict[str, Any]) -> bool:
    return set(changes) <= set(SCHEDULERS[name].kind.defaults)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_arguments_and_defaults_are_those_of_diffusers(name: str) -> None:
    theirs = dict(getattr(diffusers, name)().config)
    ours = SCHEDULERS[name]().config
    assert {key: ours[key] for key in theirs if key in ours} == {key: theirs[key] for key in theirs if key in ours}
    assert [key for key in theirs if key not in ours and not key.startswith("_")] == []


def combinations() -> list[Any]:
    """Every class with every spacing it has an argument for; diffusers' SDE draws with torchsde, so not that one."""
    return [
        pytest.param(name, changes, id=f"{name}-{next(iter(changes.values()))}-{next(iter(changes))}")
        for name in SCHEDULERS
        for changes in SPACINGS
        if takes(name, changes) and name != "DPMSolverSDEScheduler"
    ]


REFUSED = {
    # diffusers steps by N // S from timesteps that are not N // S apart
    ("DDIMScheduler", "timestep_spacing", "linspace"),
    ("PNDMScheduler", "timestep_spacing", "linspace"),
    # its lists of σ for DEIS end with the last σ twice
    *(("DEISMultistepScheduler", f"use_{kind}_sigmas", True) for kind in ("karras", "exponential", "beta")),
}


@pytest.mark.parametrize(("name", "changes"), combinations())
def test_what_is_accepted_samples_as_diffusers(name: str, changes: dict[str, Any]) -> None:
    ours, theirs = both(name, changes)
    argument, value = next(iter(changes.items()))
    if (name, argument, value) in REFUSED:
        with pytest.raises(InvalidConfig, match=argument):
            ours.sampling(MODEL, "epsilon")
        return
    theirs.set_timesteps(10)
    if argument == "use_beta_sigmas" and hasattr(theirs, "set_begin_index"):
        # its rounded list may repeat the first timestep, and it would take the second of the two for the start
        theirs.set_begin_index(0)
    sampler, spacing = ours.sampling(MODEL, "epsilon")
    noise = start_noise()
    walk = plan(MODEL, sampler=sampler, steps=10, spacing=spacing)
    draws = white_noise(generator_noise(torch.Generator().manual_seed(1)), noise)
    result = run(walk, toy_predict, enter(walk, noise), noise=draws)
    stochastic = "generator" in inspect.signature(theirs.step).parameters
    reference = diffusers_run(theirs, noise, torch.Generator().manual_seed(1) if stochastic else None)
    # the midpoint's σ is the next point's, which ours shows at that point's rounded timestep
    tolerance = 3e-3 if (name, argument) == ("KDPM2AncestralDiscreteScheduler", "use_karras_sigmas") else 5e-5
    assert relative_error(result, reference) < tolerance


def test_the_cards_scheduler_is_the_models_lms() -> None:
    scheduler = schedulers.LMSDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    assert scheduler.sampling(MODEL, "epsilon") == ("k_lms", "linspace")


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("DDIMScheduler", {"clip_sample": True}, "clip_sample"),
    ("DDIMScheduler", {"set_alpha_to_one": True}, "set_alpha_to_one"),
    ("DDIMScheduler", {"thresholding": True}, "thresholding"),
    ("DDIMScheduler", {"steps_offset": 0}, "steps_offset"),
    ("DDPMScheduler", {"variance_type": "fixed_large"}, "variance_type"),
    ("PNDMScheduler", {"skip_prk_steps": False}, "skip_prk_steps"),
    ("EulerDiscreteScheduler", {"beta_start": 0.0001}, "beta_start"),
    ("EulerDiscreteScheduler", {"beta_schedule": "linear"}, "beta_schedule"),
    ("EulerDiscreteScheduler", {"num_train_timesteps": 500}, "num_train_timesteps"),
    ("EulerDiscreteScheduler", {"trained_betas": [0.01] * 1000}, "trained_betas"),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, "prediction_type"),
    ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "interpolation_type"),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
    ("EulerDiscreteScheduler", {"timestep_spacing": "middle"}, "timestep_spacing"),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "use_karras_sigmas": True}, "timestep_spacing"),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "algorithm_type"),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "solver_type"),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas"),
    ("UniPCMultistepScheduler", {"disable_corrector": [0]}, "disable_corrector"),
    ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "solver_type"),
    ("DPMSolverSDEScheduler", {"noise_sampler_seed": 0}, "noise_sampler_seed"),
    ("LCMScheduler", {"original_inference_steps": 40}, "original_inference_steps"),
]


@pytest.mark.parametrize(("name", "changes", "named"), CONTRADICTIONS)
def test_what_we_would_do_differently_is_refused_by_name(name: str, changes: dict[str, Any], named: str) -> None:
    scheduler = SCHEDULERS[name].from_config(PUBLISHED, **changes)
    with pytest.raises(InvalidConfig, match=named) as caught:
        scheduler.sampling(MODEL, "epsilon")
    assert "\n" not in str(caught.value)


def test_an_argument_of_no_class_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="'use_magic'"):
        schedulers.EulerDiscreteScheduler(use_magic=True)


def test_defaults_of_another_class_are_not_taken_over() -> None:
    """As in diffusers: PNDM's default "leading" doesn't make Euler's list a leading one, a given "leading" does."""
    given: dict[str, Any]
    for given, expected in (({}, "linspace"), ({"timestep_spacing": "leading"}, "leading")):
        config = {**PUBLISHED, **given}
        ours = schedulers.EulerDiscreteScheduler.from_config(schedulers.PNDMScheduler.from_config(config).config)
        theirs = diffusers.EulerDiscreteScheduler.from_config(diffusers.PNDMScheduler.from_config(config).config)
        assert ours.config["timestep_spacing"] == theirs.config.timestep_spacing == expected
        assert ours.config.steps_offset == theirs.config.steps_offset == 1


def test_pipelines_correct_defaults_as_diffusers_does_but_nothing_that_was_chosen() -> None:
    plain = schedulers.DDIMScheduler(**V1, set_alpha_to_one=False)
    with pytest.raises(InvalidConfig, match="clip_sample"):
        plain.sampling(MODEL, "epsilon")
    assert plain.corrected().sampling(MODEL, "epsilon") == ("ddim", "leading")
    chosen = schedulers.DDIMScheduler(**V1, set_alpha_to_one=False, clip_sample=True)
    with pytest.raises(InvalidConfig, match="clip_sample"):
        chosen.corrected().sampling(MODEL, "epsilon")


def test_from_pretrained_reads_the_models_own_file(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(PUBLISHED))
    scheduler = schedulers.EulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert scheduler.sampling(MODEL, "epsilon") == ("euler", "linspace")
    with pytest.raises(ModelNotFound, match="subfolder"):
        schedulers.EulerDiscreteScheduler.from_pretrained(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(InvalidConfig, match="not JSON"):
        schedulers.EulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")


def test_a_scheduler_we_do_not_have_is_refused_by_name() -> None:
    with pytest.raises(InvalidConfig, match="'EDMEulerScheduler'"):
        schedulers.scheduler_of({"_class_name": "EDMEulerScheduler"})


def test_arguments_that_a_class_does_not_know_survive_it() -> None:
    """As in diffusers: DDIM made from Euler made from the model's PNDM still knows the model's set_alpha_to_one."""
    for home in (schedulers, diffusers):
        chain = home.EulerDiscreteScheduler.from_config(home.PNDMScheduler.from_config(PUBLISHED).config)
        config = home.DDIMScheduler.from_config(chain.config).config
        assert (config.set_alpha_to_one, config.clip_sample, config.steps_offset) == (False, False, 1)
