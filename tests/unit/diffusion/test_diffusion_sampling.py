"""`plan`, `enter` and `run` around the samplers: calls, steps, notes, batches, guidance, pictures, inpainting."""

from __future__ import annotations

import math
import sys

import diffusers
import pytest
import torch
from torch import Tensor

from sfumato.diffusion.denoiser import denoiser
from sfumato.diffusion.guidance import guide
from sfumato.diffusion.inpaint import keep_known
from sfumato.diffusion.noise import cpu_noise
from sfumato.diffusion.profiles import PROFILES
from sfumato.diffusion.sampler_info import SAMPLERS
from sfumato.diffusion.sampling import Plan, StepInfo, enter, plan, run, step_noise
from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.errors import Cancelled, InvalidRequest, MissingExtra, NumericalError
from support.diffusion_toy import SHAPE, V1, diffusers_run, relative_error, start_noise, toy_model, toy_predict

NOISE = NoiseSchedule()
CASES = [(sampler, profile) for sampler in SAMPLERS for profile in PROFILES]


def complete_run(the_plan: Plan, seeds: list[int], **options: object) -> Tensor:
    """Text to image with per-picture seeds, as the pipeline does it."""
    draw = cpu_noise(seeds)
    x = enter(the_plan, draw((len(seeds), *SHAPE[1:])))
    return run(the_plan, toy_predict, x, noise=step_noise(the_plan, draw, seeds, x), **options)


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize(("sampler", "profile"), CASES)
def test_calls_steps_and_levels_are_as_planned(sampler: str, profile: str, steps: int) -> None:
    the_plan = plan(NOISE, sampler=sampler, steps=steps, profile=profile)
    shown: list[float] = []

    def predict(x_in: Tensor, t: float, sigma: float) -> Tensor:
        shown.append(t)
        return toy_model(x_in, t)

    events: list[StepInfo] = []
    draw = cpu_noise([1])
    x = enter(the_plan, draw((1, *SHAPE[1:])))
    noise = step_noise(the_plan, draw, [1], x) if the_plan.draws_noise else None
    latents = run(the_plan, predict, x, noise=noise, on_step=events.append)
    assert latents.shape == x.shape and latents.dtype == torch.float32 and latents.isfinite().all()
    assert all(0.0 <= t <= 999.0 for t in shown)
    if the_plan.model_calls is not None:
        assert len(shown) == the_plan.model_calls
        assert [event.sigma for event in events] == list(the_plan.sigmas[1:])
        assert {event.steps for event in events} == {the_plan.steps}
        assert set(the_plan.timesteps) <= set(shown)
    assert [event.index for event in events] == list(range(len(events)))
    assert events[-1].calls == len(shown)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_is_the_same_alone_and_in_a_batch(sampler: str) -> None:
    """Elementwise arithmetic only, so to the last bit. dpm_adaptive's steps follow the worst of the batch."""
    the_plan = plan(NOISE, sampler=sampler, steps=6)
    alone = complete_run(the_plan, [2])
    if SAMPLERS[sampler].takes_steps:
        assert torch.equal(complete_run(the_plan, [1, 2, 3])[1:2], alone)
    assert torch.equal(complete_run(the_plan, [2]), alone)


@pytest.mark.parametrize("sampler", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_sde_samplers_settle_on_one_path(sampler: str) -> None:
    """With more steps, the same seed comes nearer to one picture; with fresh noise each time it wouldn't.

    The profile is one whose 2M SDE draws from a path: diffusers draws independent noise there.
    """
    coarse, fine, finest = (
        complete_run(plan(NOISE, sampler=sampler, steps=steps, spacing="exponential", profile="compvis"), [5]).double()
        for steps in (40, 160, 640)
    )
    assert float((fine - finest).std()) < 0.6 * float((coarse - finest).std())
    assert float((fine - finest).std()) < 0.25 * float(finest.std())


def test_plms_and_ddim_agree_in_the_limit() -> None:
    runs = [complete_run(plan(NOISE, sampler=name, steps=500), [3]) for name in ("plms", "ddim", "ipndm")]
    assert float((runs[0] - runs[2]).abs().max()) < 1e-3
    assert float((runs[0] - runs[1]).abs().max()) < 0.05


def test_on_step_can_stop_the_run() -> None:
    seen: list[int] = []

    def stop(event: StepInfo) -> None:
        seen.append(event.index)
        if event.index == 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        complete_run(plan(NOISE, sampler="euler", steps=9), [1], on_step=stop)
    assert seen == [0, 1, 2]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"eta 0\.5 has no meaning for sampler 'euler'"):
        plan(NOISE, sampler="euler", steps=5, eta=0.5)
    with pytest.raises(InvalidRequest, match=r"eta 1\.5"):
        plan(NOISE, sampler="ddim", steps=5, eta=1.5)
    with pytest.raises(InvalidRequest, match=r"strength 1\.2"):
        plan(NOISE, sampler="ddim", steps=5, strength=1.2)
    with pytest.raises(InvalidRequest, match="no steps to leave out"):
        plan(NOISE, sampler="dpm_adaptive", steps=5, strength=0.5)
    ancestral = plan(NOISE, sampler="euler_ancestral", steps=5)
    with pytest.raises(InvalidRequest, match="pass noise"):
        run(ancestral, toy_predict, enter(ancestral, start_noise()))
    with pytest.raises(InvalidRequest, match="latents"):
        enter(plan(NOISE, sampler="euler", steps=5, strength=0.5), start_noise())
    with pytest.raises(InvalidRequest, match="prediction_type 'noise'"):
        denoiser(toy_predict, NOISE.t, "noise")


def test_dpm_adaptive_names_broken_answers() -> None:
    the_plan = plan(NOISE, sampler="dpm_adaptive", steps=1)
    with pytest.raises(NumericalError, match="NaN"):
        run(the_plan, lambda x, t, sigma: x * math.nan, enter(the_plan, start_noise()))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("sampler", [name for name, info in SAMPLERS.items() if info.takes_steps])
def test_any_strength_starts_somewhere_sensible(sampler: str, profile: str) -> None:
    for steps in (1, 2, 3, 7, 50, 1000):
        starts = []
        for strength in (0.0, 1e-9, 0.1, 0.5, 0.999, 1.0):
            the_plan = plan(NOISE, sampler=sampler, steps=steps, strength=strength, profile=profile)
            assert (the_plan.steps == 0) == (strength == 0.0)
            if the_plan.steps:
                assert the_plan.sigmas[0] <= the_plan.entry_sigma <= NOISE.sigma_max
            starts.append(the_plan.start)
        assert starts == sorted(starts, reverse=True)


def test_strength_0_returns_the_picture() -> None:
    the_plan = plan(NOISE, sampler="dpmpp_2m", steps=20, strength=0.0)
    picture = start_noise(3)
    assert the_plan.model_calls == 0
    assert torch.equal(run(the_plan, toy_predict, enter(the_plan, start_noise(), picture)), picture)


def test_strength_is_floored_in_double() -> None:
    """50 · 0.58 is 28.999999999999996: 28 steps, as Python programs count."""
    assert plan(NOISE, sampler="ddim", steps=50, strength=0.58).steps == 28


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpainting_keeps_the_known_region_and_leaves_the_rest_alone(sampler: str) -> None:
    """The toy model answers each element by itself, so the repainted region must be what it is without a mask."""
    the_plan = plan(NOISE, sampler=sampler, steps=6)
    picture, mask = start_noise(5) * 0.5, torch.zeros(1, 1, *SHAPE[2:])
    mask[..., :3] = 1.0
    unit = cpu_noise([1, 2])(SHAPE)
    x = enter(the_plan, unit)
    kept = keep_known("diffusers", latents=picture, mask=mask, noise=unit, draw=cpu_noise([3, 4]))
    noises = [step_noise(the_plan, cpu_noise([5, 6]), [5, 6], x) for _ in range(2)]
    latents = run(the_plan, toy_predict, x, noise=noises[0], inpaint=kept)
    free = run(the_plan, toy_predict, x, noise=noises[1])
    assert torch.equal(latents[..., 3:], picture[..., 3:])
    # dpm_adaptive's step sizes follow the whole picture
    tolerance = 0.0 if SAMPLERS[sampler].takes_steps else 0.1
    torch.testing.assert_close(latents[..., :3], free[..., :3], rtol=0.0, atol=tolerance)


def test_the_model_sees_the_known_region_at_its_noise_level() -> None:
    """CompVis' way: before each call, the picture with fresh noise of exactly that level."""
    the_plan = plan(NOISE, sampler="plms", steps=10, profile="compvis")
    shape = (1, 4, 64, 64)
    picture, unit = torch.zeros(shape), start_noise(1, shape)
    seen: dict[float, Tensor] = {}

    def predict(x_in: Tensor, t: float, sigma: float) -> Tensor:
        seen.setdefault(t, x_in * math.sqrt(1.0 + sigma**2) / sigma)
        return toy_model(x_in, t)

    kept = keep_known("compvis", latents=picture, mask=torch.zeros(1, 1, 1, 1), noise=unit, draw=cpu_noise([3]))
    run(the_plan, predict, enter(the_plan, unit), inpaint=kept)
    trial = the_plan.timesteps[1]
    levels = torch.stack([x.flatten() for t, x in seen.items() if t != trial])
    torch.testing.assert_close(torch.corrcoef(levels), torch.eye(len(levels)), rtol=0.0, atol=0.04)
    torch.testing.assert_close(levels.std(dim=1), torch.ones(len(levels)), rtol=0.0, atol=0.03)


def counted_answers(answers: list[Tensor], asked: list[tuple[int, ...]]) -> object:
    def answer(x_in: Tensor, t: float, which: tuple[int, ...]) -> list[Tensor]:
        asked.append(which)
        return [answers[i] for i in which]

    return answer


@pytest.mark.parametrize(
    ("options", "expected", "asked"),
    [
        ({"scale": 7.5}, (1 - 7.5, 7.5, 0.0), (0, 1)),
        ({"scale": 1.0}, (0.0, 1.0, 0.0), (1,)),
        ({"scale": 0.0}, (1.0, 0.0, 0.0), (0,)),
        ({"scale": 7.5, "interval": (0.5, 2.0)}, (1 - 7.5, 7.5, 0.0), (0, 1)),
        ({"scale": 7.5, "interval": (1.5, 2.0)}, (0.0, 1.0, 0.0), (1,)),
        ({"scale": 5.0, "weights": (1.0, -0.4)}, (1 - 5 + 2, 5.0, -2.0), (0, 1, 2)),
        ({"scale": 1.0, "weights": (1.0, 0.5)}, (-0.5, 1.0, 0.5), (0, 1, 2)),
    ],
)
def test_guidance_combines_and_skips(
    options: dict[str, object], expected: tuple[float, ...], asked: tuple[int, ...]
) -> None:
    answers = [start_noise(i) for i in range(3)]
    log: list[tuple[int, ...]] = []
    predict = guide(counted_answers(answers, log), **options)
    combined = sum((factor * answer for factor, answer in zip(expected, answers, strict=True)), torch.zeros(SHAPE))
    torch.testing.assert_close(predict(start_noise(), 1.0, 1.0), combined, rtol=1e-5, atol=1e-5)
    assert log == [asked]


def test_rescale_is_per_picture() -> None:
    answers = [start_noise(i) * torch.tensor([1.0, 30.0]).view(2, 1, 1, 1) for i in range(2)]
    together = guide(counted_answers(answers, []), scale=7.5, rescale=0.7)
    second = [answer[1:] for answer in answers]
    alone = guide(counted_answers(second, []), scale=7.5, rescale=0.7)
    x = start_noise()
    torch.testing.assert_close(together(x, 1.0, 1.0)[1:], alone(x[1:], 1.0, 1.0))


def test_k_diffusions_paths_are_torchsdes_and_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parity profiles ask for torchsde rather than quietly drawing another path; the default needs nothing."""
    x = start_noise()
    monkeypatch.setitem(sys.modules, "torchsde", None)
    step_noise(plan(NOISE, sampler="dpmpp_sde", steps=5), cpu_noise([1, 2]), [1, 2], x)
    with pytest.raises(MissingExtra, match=r"sfumato\[sde\]"):
        step_noise(plan(NOISE, sampler="dpmpp_sde", steps=5, profile="k-diffusion"), cpu_noise([1, 2]), [1, 2], x)


@pytest.mark.filterwarnings("ignore:Should have")
def test_dpmpp_sde_with_torchsde_is_diffusers_whole() -> None:
    """Scheduler, seeds and tree together: the run of diffusers' DPMSolverSDEScheduler, k-diffusion's port, on Karras'
    σ, which are the same in both."""
    scheduler = diffusers.DPMSolverSDEScheduler(**V1, use_karras_sigmas=True, noise_sampler_seed=[5, 6])
    scheduler.set_timesteps(8)
    noise = start_noise()
    theirs = diffusers_run(scheduler, noise)
    the_plan = plan(NOISE, sampler="dpmpp_sde", steps=8, profile="k-diffusion", spacing="karras")
    x = enter(the_plan, noise)
    ours = run(the_plan, toy_predict, x, noise=step_noise(the_plan, cpu_noise([1, 2]), [5, 6], x))
    # σ differ in the seventh digit (its ᾱ is float32), and a Brownian path is rough: with another path this is above 1
    assert relative_error(ours, theirs) < 0.01
