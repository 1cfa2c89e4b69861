"""Every sampler that diffusers has too, against its scheduler, on a toy model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from sfumato.diffusion.noise import generator_noise, white_noise
from sfumato.diffusion.sampler_info import SAMPLERS
from sfumato.diffusion.sampling import enter, plan, run
from sfumato.diffusion.schedule import NoiseSchedule
from support.diffusion_toy import (
    SHAPE,
    V1,
    diffusers_loop,
    diffusers_run,
    relative_error,
    start_noise,
    toy_model,
    toy_predict,
)

STEPS = (1, 2, 5, 7, 20, 50)
NOISE = NoiseSchedule()
TOLERANCE = 5e-5
"""In units of the output's standard deviation. What remains is diffusers' float32 ᾱ and σ; it adds up."""

# the published v1-4 scheduler configurations
PNDM = {**V1, "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}
DDIM = {**V1, "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}
DDPM = {**V1, "clip_sample": False, "steps_offset": 1, "variance_type": "fixed_small"}

DETERMINISTIC: dict[str, tuple[str, str | None, Callable[[], Any]]] = {
    "plms": ("plms", None, lambda: diffusers.PNDMScheduler(**PNDM)),
    "ddim": ("ddim", None, lambda: diffusers.DDIMScheduler(**DDIM)),
    "k_lms": ("k_lms", None, lambda: diffusers.LMSDiscreteScheduler(**V1)),
    "k_lms karras": ("k_lms", "karras", lambda: diffusers.LMSDiscreteScheduler(**V1, use_karras_sigmas=True)),
    "euler": ("euler", None, lambda: diffusers.EulerDiscreteScheduler(**V1)),
    "euler leading": (
        "euler",
        "leading",
        lambda: diffusers.EulerDiscreteScheduler(**V1, timestep_spacing="leading", steps_offset=1),
    ),
    "euler trailing": (
        "euler",
        "trailing",
        lambda: diffusers.EulerDiscreteScheduler(**V1, timestep_spacing="trailing"),
    ),
    "euler karras": ("euler", "karras", lambda: diffusers.EulerDiscreteScheduler(**V1, use_karras_sigmas=True)),
    "euler exponential": (
        "euler",
        "exponential",
        lambda: diffusers.EulerDiscreteScheduler(**V1, use_exponential_sigmas=True),
    ),
    "euler beta": ("euler", "beta", lambda: diffusers.EulerDiscreteScheduler(**V1, use_beta_sigmas=True)),
    "heun": ("heun", None, lambda: diffusers.HeunDiscreteScheduler(**V1)),
    "heun karras": ("heun", "karras", lambda: diffusers.HeunDiscreteScheduler(**V1, use_karras_sigmas=True)),
    "dpm2": ("dpm2", None, lambda: diffusers.KDPM2DiscreteScheduler(**V1)),
    "dpm2 karras": ("dpm2", "karras", lambda: diffusers.KDPM2DiscreteScheduler(**V1, use_karras_sigmas=True)),
    "dpmpp_2m": ("dpmpp_2m", None, lambda: diffusers.DPMSolverMultistepScheduler(**V1)),
    "dpmpp_2m leading": (
        "dpmpp_2m",
        "leading",
        lambda: diffusers.DPMSolverMultistepScheduler(**V1, timestep_spacing="leading", steps_offset=1),
    ),
    "dpmpp_2m trailing": (
        "dpmpp_2m",
        "trailing",
        lambda: diffusers.DPMSolverMultistepScheduler(**V1, timestep_spacing="trailing"),
    ),
    "dpmpp_2m karras": (
        "dpmpp_2m",
        "karras",
        lambda: diffusers.DPMSolverMultistepScheduler(**V1, use_karras_sigmas=True),
    ),
    "dpmpp_2m exponential": (
        "dpmpp_2m",
        "exponential",
        lambda: diffusers.DPMSolverMultistepScheduler(**V1, use_exponential_sigmas=True),
    ),
    "dpmpp_2m beta": ("dpmpp_2m", "beta", lambda: diffusers.DPMSolverMultistepScheduler(**V1, use_beta_sigmas=True)),
    "unipc": ("unipc", None, lambda: diffusers.UniPCMultistepScheduler(**V1)),
    "unipc karras": ("unipc", "karras", lambda: diffusers.UniPCMultistepScheduler(**V1, use_karras_sigmas=True)),
    "deis": ("deis", None, lambda: diffusers.DEISMultistepScheduler(**V1)),
}


def from_the_last_timestep(scheduler: Any) -> None:
    """With one step, diffusers' linspace starts its k-samplers at timestep 0, where x is already clean (and its beta
    and Karras lists start from there as well). We start at the last, as k-diffusion does; so must the reference."""
    scheduler.timesteps[0] = 999
    scheduler.sigmas[0] = NOISE.sigma_max


def prepared(scheduler: Any, sampler: str, spacing: str | None, steps: int) -> Any:
    scheduler.set_timesteps(steps)
    if steps == 1 and SAMPLERS[sampler].grid == "sigma" and spacing not in ("leading", "trailing"):
        from_the_last_timestep(scheduler)
    if spacing == "beta":
        # its rounded list repeats 998, and it would take the second of the two for the start, then run off the end
        scheduler.set_begin_index(0)
    return scheduler


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("case", DETERMINISTIC)
def test_deterministic_samplers_match_diffusers(case: str, steps: int) -> None:
    sampler, spacing, make = DETERMINISTIC[case]
    scheduler = prepared(make(), sampler, spacing, steps)
    noise = start_noise()
    ours_plan = plan(NOISE, sampler=sampler, steps=steps, spacing=spacing)
    ours = run(ours_plan, toy_predict, enter(ours_plan, noise))
    assert relative_error(ours, diffusers_run(scheduler, noise)) < TOLERANCE


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_with_eta_matches_diffusers(eta: float, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(**DDIM)
    scheduler.set_timesteps(steps)
    noise = start_noise()
    x, generator = noise, torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        x = scheduler.step(toy_model(x, t), t, x, eta=eta, generator=generator).prev_sample
    assert relative_error(drawn_run("ddim", steps, noise, eta=eta), x) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_ddim_trailing_matches_diffusers_where_its_stride_is_whole(steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(**DDIM, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    ours_plan = plan(NOISE, sampler="ddim", steps=steps, spacing="trailing")
    ours = run(ours_plan, toy_predict, enter(ours_plan, start_noise()))
    assert relative_error(ours, diffusers_run(scheduler, start_noise())) < TOLERANCE


def drawn_run(
    sampler: str, steps: int, noise: torch.Tensor, spacing: str | None = None, eta: float = 0.0
) -> torch.Tensor:
    """Our run with independent noise from a generator seeded with 1."""
    ours_plan = plan(NOISE, sampler=sampler, steps=steps, spacing=spacing, eta=eta)
    step_noise = white_noise(generator_noise(torch.Generator().manual_seed(1)), noise)
    return run(ours_plan, toy_predict, enter(ours_plan, noise), noise=step_noise)


STOCHASTIC: dict[str, tuple[str, str | None, Callable[[], Any]]] = {
    "ddpm": ("ddpm", None, lambda: diffusers.DDPMScheduler(**DDPM)),
    "ddpm trailing": ("ddpm", "trailing", lambda: diffusers.DDPMScheduler(**DDPM, timestep_spacing="trailing")),
    "euler_ancestral": ("euler_ancestral", None, lambda: diffusers.EulerAncestralDiscreteScheduler(**V1)),
    "dpm2_ancestral": ("dpm2_ancestral", None, lambda: diffusers.KDPM2AncestralDiscreteScheduler(**V1)),
    "dpmpp_2m_sde": (
        "dpmpp_2m_sde",
        None,
        lambda: diffusers.DPMSolverMultistepScheduler(**V1, algorithm_type="sde-dpmsolver++"),
    ),
    "dpmpp_2m_sde karras": (
        "dpmpp_2m_sde",
        "karras",
        lambda: diffusers.DPMSolverMultistepScheduler(**V1, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
    ),
    "lcm": ("lcm", None, lambda: diffusers.LCMScheduler(**V1)),
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("case", STOCHASTIC)
def test_stochastic_samplers_match_diffusers(case: str, steps: int) -> None:
    sampler, spacing, make = STOCHASTIC[case]
    scheduler = prepared(make(), sampler, spacing, steps)
    noise = start_noise()
    theirs = diffusers_run(scheduler, noise, torch.Generator().manual_seed(1))
    # in two steps σ falls 500-fold at once, and diffusers' float32 √(σ′² − σ_up²) keeps only four digits of σ_down
    tolerance = 5e-4 if case == "dpm2_ancestral" and steps == 2 else TOLERANCE
    assert relative_error(drawn_run(sampler, steps, noise, spacing), theirs) < tolerance


def test_lcm_has_the_boundary_condition_of_its_consistency_function() -> None:
    """Over the last timesteps, 4 to 0, where it tells: at 0 the answer is the input itself."""
    scheduler = diffusers.LCMScheduler(**V1)
    scheduler.set_timesteps(1000, original_inference_steps=1000)
    timesteps = scheduler.timesteps[995:]
    scheduler.set_begin_index(995)
    picture, noise = start_noise(5) * 0.7, start_noise(6)
    x, generator = scheduler.add_noise(picture, noise, timesteps[:1]), torch.Generator().manual_seed(1)
    for t in timesteps:
        x = scheduler.step(toy_model(x, t), t, x, generator=generator).prev_sample
    ours_plan = plan(NOISE, sampler="lcm", steps=1000, strength=0.005)
    step_noise = white_noise(generator_noise(torch.Generator().manual_seed(1)), noise)
    ours = run(ours_plan, toy_predict, enter(ours_plan, noise, picture), noise=step_noise)
    assert ours_plan.timesteps == (4.0, 3.0, 2.0, 1.0, 0.0)
    assert relative_error(ours, x) < TOLERANCE


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", [None, "karras"])
def test_dpmpp_sde_matches_diffusers_given_the_same_increments(spacing: str | None, steps: int) -> None:
    scheduler = diffusers.DPMSolverSDEScheduler(**V1, use_karras_sigmas=spacing == "karras")
    prepared(scheduler, "dpmpp_sde", spacing, steps)
    noise = start_noise()
    theirs, ours = (white_noise(generator_noise(torch.Generator().manual_seed(1)), noise) for _ in range(2))
    scheduler.noise_sampler = theirs
    ours_plan = plan(NOISE, sampler="dpmpp_sde", steps=steps, spacing=spacing)
    result = run(ours_plan, toy_predict, enter(ours_plan, noise), noise=ours)
    assert relative_error(result, diffusers_run(scheduler, noise)) < TOLERANCE


@pytest.mark.parametrize("steps", STEPS)
def test_ipndm_matches_diffusers_given_our_points(steps: int) -> None:
    """diffusers' IPNDM has a noise schedule of its own; given our points as its `trained_betas` (√(1 − ᾱ)), and the
    v-prediction that it assumes, it is the same sampler."""
    ours_plan = plan(NOISE, sampler="ipndm", steps=steps)
    betas = [sigma / (1.0 + sigma**2) ** 0.5 for sigma in ours_plan.sigmas]
    scheduler = diffusers.IPNDMScheduler(trained_betas=betas)
    scheduler.set_timesteps(steps)
    noise = start_noise()
    x = noise
    for t, shown in zip(scheduler.timesteps, ours_plan.timesteps, strict=True):
        x = scheduler.step(toy_model(x, shown), t, x).prev_sample
    ours = run(ours_plan, toy_predict, enter(ours_plan, noise), prediction="v_prediction")
    assert relative_error(ours, x) < TOLERANCE


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("case", ["ddim", "euler", "dpmpp_2m", "unipc"])
def test_other_prediction_types_match_diffusers(case: str, prediction: str) -> None:
    sampler, spacing, make = DETERMINISTIC[case]
    scheduler = make()
    scheduler.register_to_config(prediction_type=prediction)
    scheduler.set_timesteps(12)
    noise = start_noise()
    ours_plan = plan(NOISE, sampler=sampler, steps=12, spacing=spacing)
    ours = run(ours_plan, toy_predict, enter(ours_plan, noise), prediction=prediction)
    assert relative_error(ours, diffusers_run(scheduler, noise)) < TOLERANCE


@pytest.mark.parametrize("config", [{"beta_schedule": "linear"}, {"rescale_betas_zero_snr": True}])
def test_other_noise_schedules_match_diffusers(config: dict[str, Any]) -> None:
    values = {**V1, **config}
    scheduler = diffusers.EulerDiscreteScheduler(**values, prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    ours_plan = plan(NoiseSchedule.from_config(scheduler.config), sampler="euler", steps=10)
    noise = start_noise()
    ours = run(ours_plan, toy_predict, enter(ours_plan, noise), prediction="v_prediction")
    # with zero terminal SNR diffusers' float32 ᾱ loses digits near the end
    assert relative_error(ours, diffusers_run(scheduler, noise)) < 3e-4


@pytest.mark.parametrize(("steps", "strength"), [(50, 0.03), (50, 0.3), (50, 0.58), (50, 0.75), (50, 1.0), (20, 0.3)])
@pytest.mark.parametrize("case", ["ddim", "euler", "dpmpp_2m", "euler karras", "deis"])
def test_picture_start_matches_diffusers(case: str, steps: int, strength: float) -> None:
    sampler, spacing, make = DETERMINISTIC[case]
    scheduler = make()
    scheduler.set_timesteps(steps)
    kept = min(int(steps * strength), steps)
    timesteps = scheduler.timesteps[steps - kept :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(steps - kept)
    picture, noise = start_noise(5) * 0.7, start_noise(6)
    x = scheduler.add_noise(picture, noise, timesteps[:1].repeat(SHAPE[0]))
    ours_plan = plan(NOISE, sampler=sampler, steps=steps, spacing=spacing, strength=strength)
    ours = run(ours_plan, toy_predict, enter(ours_plan, noise, picture))
    assert ours_plan.steps == kept
    assert relative_error(ours, diffusers_loop(scheduler, x, timesteps)) < TOLERANCE


@pytest.mark.parametrize("case", ["ddim", "euler"])
def test_inpainting_matches_diffusers(case: str) -> None:
    """The blend of diffusers' StableDiffusionInpaintPipeline with a four-channel model, written out here."""
    from sfumato.diffusion.inpaint import keep_known

    sampler, spacing, make = DETERMINISTIC[case]
    scheduler = make()
    scheduler.set_timesteps(9)
    picture, noise = start_noise(5) * 0.7, start_noise(6)
    mask = (start_noise(7, (1, 1, *SHAPE[2:])) > 0).float()
    x = noise * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(toy_model(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        known = picture
        if i < len(scheduler.timesteps) - 1:
            known = scheduler.add_noise(picture, noise, scheduler.timesteps[i + 1 : i + 2])
        x = (1 - mask) * known + mask * x
    ours_plan = plan(NOISE, sampler=sampler, steps=9, spacing=spacing)
    known_region = keep_known(
        "diffusers", latents=picture, mask=mask, noise=noise, draw=generator_noise(torch.Generator())
    )
    ours = run(ours_plan, toy_predict, enter(ours_plan, noise), inpaint=known_region)
    assert relative_error(ours, x) < TOLERANCE


def test_guidance_and_its_rescale_match_diffusers() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    from sfumato.diffusion.guidance import guide

    answers = [start_noise(1), start_noise(2)]
    predict = guide(lambda x, t, which: [answers[i] for i in which], scale=7.5, rescale=0.7)
    theirs = answers[0] + 7.5 * (answers[1] - answers[0])
    theirs = rescale_noise_cfg(theirs, answers[1], guidance_rescale=0.7)
    torch.testing.assert_close(predict(start_noise(), 1.0, 1.0), theirs, rtol=1e-6, atol=1e-6)


def test_k_samplers_move_the_generator_as_far_as_diffusers() -> None:
    """Two pictures from one generator: the second starts where the first one's last, unused draw ended."""
    theirs, ours = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**V1)
    scheduler.set_timesteps(4)
    diffusers_run(scheduler, start_noise(), theirs)
    ours_plan = plan(NOISE, sampler="euler_ancestral", steps=4)
    run(
        ours_plan, toy_predict, enter(ours_plan, start_noise()), noise=white_noise(generator_noise(ours), start_noise())
    )
    assert torch.equal(torch.randn(4, generator=theirs), torch.randn(4, generator=ours))
