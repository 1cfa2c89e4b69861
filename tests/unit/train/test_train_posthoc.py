"""The averaging length chosen after the run: the paper's formulas, and sums over all steps in float64."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError, InvalidConfig, ModelNotFound
from sfumato.train.distributed.ddp_and_fsdp import LossModule
from sfumato.train.distributed.process_group import World
from sfumato.train.inputs.draws import Draws
from sfumato.train.optim.ema import Ema, PowerEma
from sfumato.train.optim.loss_scaler import LossScaler
from sfumato.train.optim.optimizer_step import Stepper
from sfumato.train.optim.optimizers import build_optimizer
from sfumato.train.optim.posthoc_ema import coefficients, inner_products, reconstruct
from sfumato.train.optim.power_profile import WIDEST, gamma_of, power_decay
from sfumato.train.run_config import OptimizerConfig
from sfumato.train.train_state import TrainState
from sfumato.train.trainer import train
from support.train_toy import ToyTask, ToyTraining, toy_config

WIDTHS = (0.05, 0.1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("sigma_rel", [0.001, 0.01, 0.05, 0.1, 0.2, 0.25, 0.288])
def test_gamma_is_the_largest_root_and_gives_that_width(sigma_rel: float) -> None:
    gamma = gamma_of(sigma_rel)
    t = sigma_rel**-2
    assert gamma == pytest.approx(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max(), rel=1e-9)
    assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(sigma_rel, rel=1e-12)
    grid = (np.arange(1_000_000) + 0.5) / 1e6  # deviation of t under the profile itself
    weights = grid**gamma / (grid**gamma).sum()
    mean = (weights * grid).sum()
    assert math.sqrt((weights * (grid - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-4)


def test_the_paper_s_widths_and_exponents() -> None:
    """Karras et al. 2024, section 3.1: σ_rel 0.05 and 0.10 are γ 16.97 and 6.94."""
    assert [round(gamma_of(width), 2) for width in WIDTHS] == [16.97, 6.94]


@pytest.mark.parametrize("sigma_rel", [-0.1, 0.0, WIDEST, 0.5, math.nan])
def test_widths_that_no_average_has_are_refused(sigma_rel: float) -> None:
    with pytest.raises(InvalidConfig, match=r"above 0 and below 0\.2887"):
        gamma_of(sigma_rel)
    with pytest.raises(InvalidConfig, match=r"above 0 and below 0\.2887"):
        toy_config(ema_sigma_rels=(0.1, sigma_rel))


def test_options_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="must all differ"):
        toy_config(ema_sigma_rels=(0.1, 0.1))
    with pytest.raises(InvalidConfig, match="snapshot_every = 0"):
        toy_config(snapshot_every=0)


def step_weights(steps: int, sigma_rel: float) -> Tensor:
    """What each step's weights count in the average after the last: the integral of the profile over the step."""
    edges = torch.arange(steps + 1, dtype=torch.float64) / steps
    return (edges ** (gamma_of(sigma_rel) + 1.0)).diff()


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.25])
def test_the_average_weighs_steps_by_the_profile(sigma_rel: float) -> None:
    steps = 300
    module = nn.Linear(1, steps, bias=False)
    average = PowerEma(module, sigma_rel)
    for step in range(1, steps + 1):
        with torch.no_grad():
            module.weight.copy_(torch.arange(1, steps + 1)[:, None] == step)
        average.update(module, step)
    torch.testing.assert_close(
        average.module.weight[:, 0].double(), step_weights(steps, sigma_rel), atol=1e-7, rtol=1e-5
    )
    products = [power_decay(step, average.gamma) for step in range(2, steps + 1)]
    assert math.prod(products) == pytest.approx(float(step_weights(steps, sigma_rel)[0]), rel=1e-9)


@pytest.mark.parametrize(("end", "other"), [(7.0, 7.0), (3.0, 8.0), (8.0, 3.0), (1.0, 1000.0)])
@pytest.mark.parametrize(("width", "other_width"), [(0.05, 0.1), (0.1, 0.1), (0.02, 0.25)])
def test_inner_products_are_the_integrals(end: float, other: float, width: float, other_width: float) -> None:
    gammas = gamma_of(width), gamma_of(other_width)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    shorter = min(end, other)
    t = shorter * (nodes + 1.0) / 2.0
    profiles = [(gamma + 1.0) / last * (t / last) ** gamma for gamma, last in zip(gammas, (end, other), strict=True)]
    expected = float((weights * profiles[0] * profiles[1]).sum() * shorter / 2.0)
    numbers = (torch.tensor(value, dtype=torch.float64) for value in (end, gammas[0], other, gammas[1]))
    assert float(inner_products(*numbers)) == pytest.approx(expected, rel=1e-10, abs=1e-300)


def test_an_average_that_is_kept_is_itself() -> None:
    kept = [(1000.0 * i, width) for i in range(1, 51) for width in WIDTHS]
    for index in (0, 41, 98, 99):
        shares, error = coefficients([*kept[: index + 1]], *kept[index])
        torch.testing.assert_close(shares, torch.eye(index + 1, dtype=torch.float64)[index], atol=1e-9, rtol=0.0)
        assert error < 1e-7


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.15, 0.2])
def test_coefficients_are_the_nearest_combination(sigma_rel: float) -> None:
    """Against a least-squares fit of the sampled profiles, which knows no formula of their products."""
    kept = [(10.0 * i, width) for i in range(1, 7) for width in WIDTHS]
    t = (np.arange(60_000) + 0.5) / 1000.0

    def sampled(end: float, width: float) -> np.ndarray:
        gamma = gamma_of(width)
        return np.where(t <= end, (gamma + 1.0) / end * (np.minimum(t, end) / end) ** gamma, 0.0)

    profiles, wanted = np.stack([sampled(*one) for one in kept], axis=1), sampled(60.0, sigma_rel)
    expected = np.linalg.lstsq(profiles, wanted, rcond=None)[0]
    expected /= expected.sum()
    shares, error = coefficients(kept, 60.0, sigma_rel)
    np.testing.assert_allclose(shares.numpy(), expected, atol=2e-4)
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-12)
    apart = np.linalg.norm(profiles @ shares.numpy() - wanted) / np.linalg.norm(wanted)
    assert error == pytest.approx(apart, rel=1e-2)


def test_more_snapshots_come_nearer() -> None:
    """The profile error falls with the square of their number."""
    errors = []
    for count in (20, 40, 80, 160):
        kept = [(i / count, width) for i in range(1, count + 1) for width in WIDTHS]
        errors.append(coefficients(kept, 1.0, 0.08)[1])
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert orders == pytest.approx([2.0, 2.0, 2.0], abs=0.2)


class Recorded(ToyTask):
    """The weights before each step, and so after the one before."""

    def __init__(self, config: ToyTraining) -> None:
        super().__init__(config)
        self.seen: dict[int, dict[str, Tensor]] = {}

    def loss(self, module, batch, draws):
        if draws.step not in self.seen:
            self.seen[draws.step] = {name: value.detach().clone() for name, value in module.state_dict().items()}
        return super().loss(module, batch, draws)


STEPS = 200


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, dict[str, Tensor]]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("recorded")
    config = toy_config(steps=STEPS, ema_sigma_rels=WIDTHS, snapshot_every=8, validate_every=0, checkpoint_minutes=60.0)
    task = Recorded(config)
    state = train(task, config, folder).state
    after = {step: weights for step, weights in task.seen.items() if step} | {STEPS: state.module.state_dict()}
    assert sorted(after) == list(range(1, STEPS + 1))
    return folder, after


def summed(after: dict[int, dict[str, Tensor]], steps: int, sigma_rel: float) -> dict[str, Tensor]:
    """The average over all steps, in float64."""
    weights = step_weights(steps, sigma_rel)
    names = [name for name, tensor in after[1].items() if "running" not in name and "batches" not in name]
    return {
        name: sum(float(weight) * after[step][name].double() for step, weight in enumerate(weights, start=1))
        for name in names
    }


def apart(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The distance, relative to the length of all weights."""
    distance = sum(float((found[name].double() - tensor).square().sum()) for name, tensor in expected.items())
    return math.sqrt(distance / sum(float(tensor.square().sum()) for tensor in expected.values()))


@pytest.mark.parametrize("step", [None, 120])
@pytest.mark.parametrize("sigma_rel", [0.04, 0.05, 0.0501, 0.07, 0.1, 0.15, 0.2])
def test_a_run_s_averages_are_those_over_all_steps(
    recorded: tuple[Path, dict[int, dict[str, Tensor]]], sigma_rel: float, step: int | None
) -> None:
    folder, after = recorded
    found = reconstruct(folder, sigma_rel, step)
    expected = summed(after, step or STEPS, sigma_rel)
    assert found.step == (step or STEPS)
    assert found.weights.keys() == after[1].keys()
    distance = apart(found.weights, expected)
    if sigma_rel in WIDTHS:
        assert distance < 1e-6  # float32
    # of what averaging changes, 0.0005 at most between the widths that are kept, 0.019 outside
    share = 0.001 if WIDTHS[0] <= sigma_rel <= WIDTHS[1] else 0.025
    assert distance < share * apart(after[found.step], expected)


class Overflowing(ToyTask):
    """Step 2's loss is finite, its gradient isn't, as where float16 overflows."""

    def build(self) -> nn.Module:
        return nn.Linear(1, 1, bias=False)

    def loss(self, module, batch, draws):
        scale = module.weight.sum()
        return ((0.0 * scale).sqrt() if draws.step == 2 else (scale - 3.0).square()), {}


def test_a_step_that_was_passed_over_counts_in_the_profile() -> None:
    config = toy_config(steps=4, accumulate=1, optimizer=OptimizerConfig(learning_rate=0.1))
    task = Overflowing(config)
    module = task.build()
    groups = task.groups(module)
    state = TrainState(
        module,
        Ema(module, 0.9),
        build_optimizer(config.run.optimizer, groups, module),
        powers=(PowerEma(module, 0.2),),
        scaler=LossScaler(enabled=True),
    )
    stepper = Stepper(LossModule(task, module), groups, state, config.run, World(device=torch.device("cpu")))
    weights = []
    for step in range(4):
        stepper.step([({}, Draws(0, step, range(4)))])
        weights.append(module.weight.item())
    assert weights[2] == weights[1]
    assert len(set(weights)) == 3
    expected = sum(float(share) * weight for share, weight in zip(step_weights(4, 0.2), weights, strict=True))
    assert float(state.powers[0].module.weight) == pytest.approx(expected, rel=1e-6)


def test_buffers_are_those_of_the_step_not_averaged(recorded: tuple[Path, dict[int, dict[str, Tensor]]]) -> None:
    folder, after = recorded
    for step in (120, STEPS):
        found = reconstruct(folder, 0.08, step).weights
        for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
            assert torch.equal(found[name], after[step][name]), name


def test_what_the_snapshots_cannot_tell_is_said(
    recorded: tuple[Path, dict[int, dict[str, Tensor]]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = recorded
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        assert reconstruct(folder, 0.01).profile_error > 0.1
    assert "sigma_rel = 0.01 is too far from what 25 snapshots of 0.05, 0.1 tell" in caplog.messages[0]
    with pytest.raises(InvalidConfig, match=r"step 121: no snapshot of it; there are 8, 16, .* 200"):
        reconstruct(folder, 0.08, 121)
    with pytest.raises(InvalidConfig, match=r"sigma_rel = 0\.3 must"):
        reconstruct(folder, 0.3)


def test_runs_without_snapshots_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    config = toy_config(steps=4, ema_sigma_rels=())
    train(ToyTask(config), config, tmp_path / "without")
    assert not (tmp_path / "without/snapshots").exists()
    with pytest.raises(ModelNotFound, match=r"run\.ema_sigma_rels"):
        reconstruct(tmp_path / "without", 0.08)
    config = toy_config(steps=4, ema_sigma_rels=WIDTHS, snapshot_every=3)
    train(ToyTask(config), config, tmp_path / "run")
    first, last = sorted((tmp_path / "run/snapshots").iterdir())
    assert (first.name, last.name) == ("step-00000003.safetensors", "step-00000004.safetensors")
    data = bytearray(first.read_bytes())
    data[-5] ^= 1
    first.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step-00000003\.safetensors: damaged"):
        reconstruct(tmp_path / "run", 0.08)
    first.write_bytes(next((tmp_path / "run/checkpoints").iterdir()).read_bytes())
    with pytest.raises(CheckpointError, match="not a snapshot"):
        reconstruct(tmp_path / "run", 0.08)
