"""A run stopped at any moment, by any means, ends with the numbers of the run that wasn't."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sfumato.files
from sfumato.errors import InvalidConfig, NumericalError, OutputError
from sfumato.progress import Cancellation
from sfumato.train.checkpoints import Checkpoints, read_checkpoint
from sfumato.train.trainer import train
from sfumato.weights.checkpoint import open_checkpoint
from support.train_toy import ToyTask, run_toy, toy_config


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def final_tensors(folder: Path) -> dict[str, Tensor]:
    saved = Checkpoints(folder / "checkpoints", keep=2).newest()
    assert saved is not None
    assert saved.step == toy_config().run.steps
    return dict(saved.tensors)


def assert_same_run(first: Path, second: Path) -> None:
    ours, theirs = final_tensors(first), final_tensors(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()
    assert snapshots(first) == snapshots(second)


def snapshots(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (folder / "snapshots").iterdir()}
    assert sorted(found) == [f"step-{step:08d}.safetensors" for step in (*range(3, 40, 3), 40)]
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    config = toy_config()
    assert train(ToyTask(config), config, folder).finished
    return folder


def test_a_checkpoint_holds_weights_average_and_optimizer(uninterrupted: Path) -> None:
    names = final_tensors(uninterrupted)
    assert {"model.0.weight", "ema.0.weight", "optimizer.0.weight.exp_avg", "optimizer.4.bias.exp_avg_sq"} <= set(names)
    assert float(names["optimizer.0.weight.step"]) == toy_config().run.steps
    assert not torch.equal(names["model.0.weight"], names["ema.0.weight"])


class CancelAt(ToyTask):
    """Asks to stop while it computes the given step."""

    def __init__(self, config, step: int, cancellation: Cancellation) -> None:
        super().__init__(config)
        self.step, self.cancellation = step, cancellation

    def loss(self, module, batch, draws):
        if draws.step == self.step:
            self.cancellation.cancel()
        return super().loss(module, batch, draws)


@pytest.mark.parametrize("workers", [1, 3])
def test_cancelled_runs_go_on_where_they_stopped(tmp_path: Path, uninterrupted: Path, workers: int) -> None:
    config = toy_config(workers=workers, keep=1)
    for step in (0, 1, 13, 27):
        cancellation = Cancellation()
        outcome = train(CancelAt(config, step, cancellation), config, tmp_path, cancellation=cancellation)
        assert not outcome.finished
        assert outcome.state.step == step + 1
    assert train(ToyTask(config), config, tmp_path).finished
    assert_same_run(tmp_path, uninterrupted)


def test_a_time_limit_stops_with_a_checkpoint(tmp_path: Path, uninterrupted: Path) -> None:
    config = toy_config(checkpoint_minutes=60.0)
    outcome = train(ToyTask(config), config, tmp_path, minutes=0.0)
    assert not outcome.finished
    assert Checkpoints(tmp_path / "checkpoints", keep=1).newest() is not None
    train(ToyTask(config), config, tmp_path)
    assert_same_run(tmp_path, uninterrupted)


_FORKER = """
import os, signal, sys
from pathlib import Path
import torch
from support.train_toy import run_toy
torch.optim.SGD([torch.zeros(1)])  # the first optimiser imports half of torch: once here, rather than in every child
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        calls, delay = line.split()
        left = int(calls)
        def count(event, arguments):
            global left
            if event in ("open", "os.rename", "os.remove"):
                left -= 1
                if left == 0:
                    signal.setitimer(signal.ITIMER_REAL, float(delay))  # SIGALRM, which nobody handles here
        sys.addaudithook(count)
        run_toy(Path(sys.argv[1]))
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_killed_at_random_moments_changes_nothing(tmp_path: Path, uninterrupted: Path) -> None:
    """The children write a checkpoint after every step, so that most deaths hit one being written. How far each comes
    is counted in files touched, and a moment more: a slow machine kills where a fast one does. A signal that nobody
    handles ends a process as SIGKILL does. One process that has imported torch forks them."""
    chance = random.Random(5)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = 0
    with subprocess.Popen(
        [sys.executable, "-c", _FORKER, str(tmp_path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as forker:
        assert forker.stdin is not None
        assert forker.stdout is not None
        for _ in range(20):
            print(chance.randrange(5, 40), chance.uniform(1e-6, 1e-3), file=forker.stdin, flush=True)
            killed += int(forker.stdout.readline()) == signal.SIGALRM
        forker.stdin.close()
    assert killed > 10
    newest = Checkpoints(tmp_path / "checkpoints", keep=2).newest()
    assert newest is not None
    run_toy(tmp_path)
    assert_same_run(tmp_path, uninterrupted)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path, uninterrupted: Path) -> None:
    config = toy_config(keep=3)
    cancellation = Cancellation()
    train(CancelAt(config, 20, cancellation), config, tmp_path, cancellation=cancellation)
    newest = max((tmp_path / "checkpoints").iterdir())
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)
    truncated = newest.with_name("step-00000030.safetensors")
    truncated.write_bytes(bytes(data[: len(data) // 2]))
    later = tmp_path / "snapshots" / "step-00000031.safetensors"  # of a step that is to be done again
    later.write_bytes(data)
    (tmp_path / "snapshots" / ".step-00000033.safetensors.0.part").write_bytes(data)
    assert train(ToyTask(config), config, tmp_path).finished
    assert_same_run(tmp_path, uninterrupted)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in ((1, None), (2, 5.0), (3, 1.0), (4, 2.0), (5, 3.0), (6, 4.0)):
        checkpoints.save(step, {"x": torch.tensor([float(step)])}, {}, score)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}.safetensors" for step in (3, 5, 6)]
    assert float(read_checkpoint(tmp_path / "step-00000003.safetensors").tensors["x"]) == 3.0


def test_another_config_is_refused_by_name(tmp_path: Path) -> None:
    config = toy_config()
    train(ToyTask(config), config, tmp_path, minutes=0.0)
    with pytest.raises(InvalidConfig, match=r"run\.batch"):
        train(ToyTask(toy_config(batch=8)), toy_config(batch=8), tmp_path)
    with pytest.raises(InvalidConfig, match=r"run\.optimizer\.learning_rate"):
        other = dataclasses.replace(config.run.optimizer, learning_rate=0.02)
        train(ToyTask(config), toy_config(optimizer=other), tmp_path)
    assert train(ToyTask(config), toy_config(keep=9, log_every=3, snapshot_every=4), tmp_path).finished


class Poisoned(ToyTask):
    def load(self, draws):
        batch = super().load(draws)
        if draws.step == 9:
            batch["inputs"] = batch["inputs"] * float("nan")
        return batch


def test_a_batch_of_nan_stops_before_the_step_with_the_batch_saved(tmp_path: Path) -> None:
    config = toy_config(validate_every=0)
    with pytest.raises(NumericalError, match="step 9: loss is nan"):
        train(Poisoned(config), config, tmp_path)
    saved = Checkpoints(tmp_path / "checkpoints", keep=1).newest()
    assert saved is not None
    assert saved.step == 9
    assert all(torch.isfinite(tensor).all() for tensor in saved.tensors.values())
    with open_checkpoint(tmp_path / "bad-batch-00000009.safetensors") as batch:
        assert batch.tensors["inputs"].shape == (4, 3, 8, 8)
        assert json.loads(batch.metadata["samples"]) == [36, 37, 38, 39]


def test_a_full_disk_keeps_the_checkpoints_before(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config()
    cancellation = Cancellation()
    train(CancelAt(config, 10, cancellation), config, tmp_path, cancellation=cancellation)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sfumato.files.os, "fsync", full)
        with pytest.raises(OutputError, match="disk is full"):
            train(ToyTask(config), config, tmp_path)
    assert train(ToyTask(config), config, tmp_path).finished
    assert_same_run(tmp_path, uninterrupted)
