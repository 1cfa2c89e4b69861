"""Weights and densities of the noise levels against the papers' formulas on diffusers' schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from sfumato.errors import InvalidConfig
from sfumato.train.tasks.noise_levels import NoiseConfig, noise_levels


def diffusers_schedule(**changes: object) -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **changes)


def diffusers_snr() -> np.ndarray:
    return compute_snr(diffusers_schedule(), torch.arange(1000)).double().numpy()


def test_alphas_are_diffusers() -> None:
    for zero in (False, True):
        config = NoiseConfig(zero_terminal_snr=zero, prediction="v_prediction" if zero else "epsilon")
        expected = diffusers_schedule(rescale_betas_zero_snr=zero).alphas_cumprod
        torch.testing.assert_close(noise_levels(config).alphas_cumprod, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_diffusers_training_script(prediction: str) -> None:
    snr = diffusers_snr()
    expected = np.minimum(snr, 5.0) / (snr if prediction == "epsilon" else snr + 1.0)
    levels = noise_levels(NoiseConfig(weighting="min_snr", prediction=prediction))
    np.testing.assert_allclose(levels.weights.numpy(), expected, rtol=2e-4)


def test_plain_training_draws_every_timestep_alike_and_weighs_it_1() -> None:
    levels = noise_levels(NoiseConfig())
    assert torch.equal(levels.weights, torch.ones(1000))
    drawn = levels.timesteps((torch.arange(100_000) + 0.5) / 100_000)
    assert torch.equal(torch.bincount(drawn, minlength=1000), torch.full((1000,), 100))
    assert levels.timesteps(torch.tensor([0.0, 1.0 - 2.0**-24])).tolist() == [0, 999]


@pytest.mark.parametrize("density", [0.35, 1.0])
def test_a_density_moves_weight_into_sampling_without_changing_the_expected_gradient(density: float) -> None:
    snr = diffusers_snr()
    wanted = np.clip(5.0 / snr, 0.15, 1.0) * np.minimum((1.0 + snr) / snr, 25.0)
    levels = noise_levels(NoiseConfig(weighting="high_noise", density=density))
    probabilities = np.diff(levels.cumulative.numpy(), prepend=0.0)
    np.testing.assert_allclose(probabilities, wanted**density / (wanted**density).sum(), rtol=1e-4)
    contribution = probabilities * levels.weights.numpy()
    np.testing.assert_allclose(contribution, wanted / wanted.sum(), rtol=2e-4)


def test_high_noise_weighs_the_same_error_of_the_picture_alike_for_both_predictions() -> None:
    """ε̂ = √ᾱ v̂ + √(1 - ᾱ) x: an error of v is an error of ε times √ᾱ."""
    epsilon = noise_levels(NoiseConfig(weighting="high_noise"))
    velocity = noise_levels(NoiseConfig(weighting="high_noise", prediction="v_prediction"))
    torch.testing.assert_close(velocity.weights, epsilon.weights * epsilon.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_contradictions_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="v_prediction"):
        NoiseConfig(zero_terminal_snr=True)
    with pytest.raises(InvalidConfig, match="density"):
        NoiseConfig(density=1.5)
    with pytest.raises(InvalidConfig, match="gamma"):
        NoiseConfig(gamma=0.0)
