"""The trainer's options: each against torch's or a paper's numbers, and stopped and resumed to the bit."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.errors import InvalidConfig, MissingExtra
from sfumato.progress import Cancellation
from sfumato.toml_files import to_values
from sfumato.train.distributed.ddp_and_fsdp import _innermost_blocks
from sfumato.train.optim.learning_rate import learning_rate, set_rate
from sfumato.train.optim.loss_scaler import LossScaler
from sfumato.train.optim.muon import hidden_matrices, orthogonalised
from sfumato.train.optim.optimizers import build_optimizer
from sfumato.train.run_config import OptimizerConfig
from sfumato.train.runs.run_weights import weights_of_run
from sfumato.train.task import ParameterGroup
from sfumato.train.trainer import train
from support.train_processes import Blocks, BlocksTask
from support.train_toy import toy_config

OPTIONS = {
    "muon": {"optimizer": OptimizerConfig(kind="muon", learning_rate=0.01)},
    "adamw8bit": {"optimizer": OptimizerConfig(kind="adamw8bit", learning_rate=0.01)},
    "adam": {"optimizer": OptimizerConfig(kind="adam", learning_rate=0.01)},
    "trapezoid": {"optimizer": OptimizerConfig(schedule="trapezoid", decay_share=0.5)},
    "averages": {"ema_decays": (0.5, 0.9)},
    "bfloat16": {"precision": "bfloat16"},
    "checkpoint_activations": {"checkpoint_activations": True},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_resumes_to_the_bit(tmp_path: Path, option: str) -> None:
    config = toy_config(**{"steps": 8, "validate_every": 4, "log_every": 2, **OPTIONS[option]})
    whole = train(BlocksTask(config), config, tmp_path / "whole").state.snapshot()
    cancellation = Cancellation()
    part = train(
        BlocksTask(config, stop_at=3, cancellation=cancellation), config, tmp_path / "parts", cancellation=cancellation
    )
    assert part.state.step == 3
    resumed = train(BlocksTask(config), config, tmp_path / "parts").state.snapshot()
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    assert (tmp_path / "parts/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_forgetting_activations_keeps_less_and_changes_no_number(tmp_path: Path) -> None:
    weights, kept = [], []
    for forgets in (False, True):
        config = toy_config(steps=4, checkpoint_activations=forgets)
        saved: list[int] = []

        def note(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            weights.append(train(BlocksTask(config), config, tmp_path / str(forgets)).state.snapshot())
        kept.append(sum(saved))
    assert kept[1] < kept[0]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    assert len(_innermost_blocks(Blocks())) == 2


def test_muon_is_torchs() -> None:
    """torch.optim.Muon takes matrices only and orthogonalises in bfloat16, hence the tolerance."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 4))
    theirs = copy.deepcopy(module)
    config = OptimizerConfig(kind="muon", weight_decay=0.1)
    ours = build_optimizer(config, [ParameterGroup("all", list(module.parameters()))], module)
    muon = torch.optim.Muon(
        [layer.weight for layer in theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW([layer.bias for layer in theirs], lr=0.02, weight_decay=0.1)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for mine, other in zip(module.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        set_rate(ours, 0.02)
        for optimizer in (ours, muon, adamw):
            optimizer.step()
    for mine, other in zip(module.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-3 if mine.dim() == 2 else 1e-6, rtol=0.0)


def test_muon_orthogonalises_kernels_and_leaves_edges_to_adamw() -> None:
    torch.manual_seed(0)
    for shape in ((8, 40), (40, 8)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    module = Blocks()
    names = {name for name, parameter in module.named_parameters() if parameter in hidden_matrices(module)}
    assert names == {"blocks.0.0.weight", "blocks.1.0.weight", "linear.weight"}


def test_the_late_decay_is_flat_and_then_a_line_to_zero() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, schedule="trapezoid", decay_share=0.25)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:86] == [1.0] * 76
    assert rates[85:] == pytest.approx([(110 - step) / 25 for step in range(85, 110)])


def test_the_loss_scale_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.train.optim.loss_scaler._INTERVAL", 3)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=3)
    ours = LossScaler(enabled=True)
    for finite in (True, True, False, True, True, True, True, False, False, True):
        theirs.scale(parameter.sum() * (1.0 if finite else float("inf"))).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        if finite:
            ours.went_well()
        else:
            assert ours.overflowed()
        assert ours.scale == theirs.get_scale()
    restored = LossScaler(enabled=True)
    restored.restore(ours.tensors())
    assert restored == ours
    assert not LossScaler(enabled=True, scale=1.0).overflowed()


def test_float16_needs_cuda(tmp_path: Path) -> None:
    config = toy_config(precision="float16")
    with pytest.raises(InvalidConfig, match="float16' needs a CUDA device"):
        train(BlocksTask(config), config, tmp_path)


class Silent(BlocksTask):
    """One group's parameters have no gradient in the first steps, as a critic's: torch's scaler fails at that."""

    def groups(self, module):
        assert isinstance(module, Blocks)
        rest = [parameter for parameter in module.parameters() if parameter is not module.spare]
        return [ParameterGroup("network", rest), ParameterGroup("critic", [module.spare])]


def test_a_group_without_gradients_is_no_error(tmp_path: Path) -> None:
    config = toy_config(steps=2)
    train(Silent(config), config, tmp_path)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["gradient_critic"] == 0.0


def test_every_average_is_kept_and_validated(tmp_path: Path) -> None:
    config = toy_config(steps=14, ema_decay=0.0, ema_decays=(0.5, 0.9))
    state = train(BlocksTask(config), config, tmp_path).state
    assert all(torch.equal(weights_of_run(tmp_path)[name], t) for name, t in state.module.state_dict().items())
    assert not torch.equal(
        weights_of_run(tmp_path, 0.5)["linear.weight"], weights_of_run(tmp_path, 0.9)["linear.weight"]
    )
    names = {name for line in (tmp_path / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert {"validation_score", "validation_score-ema-0.5", "validation_score-ema-0.9"} <= names
    with pytest.raises(InvalidConfig, match="differ"):
        toy_config(ema_decay=0.5, ema_decays=(0.5,))


def test_options_that_an_older_run_did_not_have_count_as_their_defaults(tmp_path: Path) -> None:
    config = toy_config(steps=4)
    train(BlocksTask(config), config, tmp_path, minutes=0.0)
    path = next((tmp_path / "checkpoints").iterdir())
    values = json.dumps(to_values(config))
    assert '"compile": false' in values
    path.write_bytes(path.read_bytes().replace(b'\\"compile\\": false, ', b" " * len(b'\\"compile\\": false, ')))
    assert train(BlocksTask(config), config, tmp_path).finished


def test_tensorboard_has_the_numbers_of_the_log(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = toy_config(steps=7, tensorboard=True)
    train(BlocksTask(config), config, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert {event.step: event.value for event in events.Scalars("loss")} == pytest.approx(losses)
    assert [event.step for event in events.Scalars("validation_score")] == [7]


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(steps=4, wandb="toys")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"sfumato\[wandb\]"):
        train(BlocksTask(config), config, tmp_path / "without")
    logged: list[tuple[str, int | None, set[str]]] = []

    def init(**options: object) -> object:
        assert (options["project"], options["resume"]) == ("toys", "allow")
        return types.SimpleNamespace(
            log=lambda values, step: logged.append((str(options["id"]), step, set(values))), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    cancellation = Cancellation()
    train(BlocksTask(config, stop_at=2, cancellation=cancellation), config, tmp_path / "run", cancellation=cancellation)
    train(BlocksTask(config), config, tmp_path / "run")
    assert [step for _, step, _ in logged] == [1, 2, 3, 4]
    assert len({run for run, _, _ in logged}) == 1
    assert all("loss" in names for _, _, names in logged)


def test_8_bit_optimisers_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    module = Blocks()
    with pytest.raises(MissingExtra, match=r"sfumato\[bitsandbytes\]"):
        build_optimizer(OptimizerConfig(kind="adamw8bit"), [ParameterGroup("all", [*module.parameters()])], module)


def test_muon_without_matrices_is_refused() -> None:
    module = nn.LayerNorm(3)
    with pytest.raises(InvalidConfig, match="hidden matrices"):
        build_optimizer(OptimizerConfig(kind="muon"), [ParameterGroup("all", [*module.parameters()])], module)


def test_the_schedule_is_part_of_the_run(tmp_path: Path) -> None:
    config = toy_config(steps=4)
    train(BlocksTask(config), config, tmp_path, minutes=0.0)
    other = dataclasses.replace(config.run.optimizer, decay_share=0.5)
    with pytest.raises(InvalidConfig, match="decay_share"):
        train(BlocksTask(config), toy_config(steps=4, optimizer=other), tmp_path)
