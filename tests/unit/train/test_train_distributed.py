"""One run on one, two and four processes (gloo), as DDP and FSDP2; stopped, killed and broken."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sfumato.errors import CheckpointError, InvalidConfig
from sfumato.train.checkpoints import Checkpoints, read_checkpoint
from sfumato.train.distributed.process_group import World
from sfumato.train.optim.posthoc_ema import reconstruct
from sfumato.train.run_config import OptimizerConfig, RunConfig
from sfumato.train.runs.run_weights import weights_of_run
from sfumato.train.trainer import train
from support.train_processes import STEPS, BlocksTask, config_of

TESTS = Path(__file__).parents[2]


def _command(processes: int, folder: Path, jobs: list[str]) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, str(TESTS / "support" / "train_processes.py"), str(folder), *jobs]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1"}


def launch(processes: int, folder: Path, *jobs: str) -> None:
    done = subprocess.run(
        _command(processes, folder, list(jobs)), env=_environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of this file's tests, in as few launches as possible."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("one", "one-muon"):
        config = config_of(name, "ddp")
        train(BlocksTask(config), config, folder / name)
    launch(
        2, folder, "two-ddp:ddp:24", "two-fsdp:fsdp:24", "two-muon:fsdp:24", "ddp-241:ddp:7", "fsdp-241:fsdp:7",
        "broken:ddp:24", "poisoned:fsdp:24",
    )  # fmt: skip
    launch(4, folder, "four-ddp:ddp:24", "four-fsdp:fsdp:24", "ddp-241:ddp:15", "fsdp-241:ddp:11", "fsdp-241:fsdp:15")
    for name in ("ddp-241", "fsdp-241"):
        config = config_of(name, "ddp")
        train(BlocksTask(config), config, folder / name)
    return folder


def numbers(folder: Path) -> dict[tuple[int, str], float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], name): value for line in lines for name, value in line.items()}


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("two-ddp", "one"),
        ("two-fsdp", "one"),
        ("four-ddp", "one"),
        ("four-fsdp", "one"),
        ("two-muon", "one-muon"),
        ("ddp-241", "one"),
        ("fsdp-241", "one"),
    ],
)
def test_any_number_of_processes_trains_the_same(runs: Path, name: str, like: str) -> None:
    """Losses, gradients, scores and tallies of every step, the averaged weights, and an average from the
    snapshots; the last two runs were stopped on
    two processes, went on on four (one of them as DDP for a while), and ended on one."""
    ours, expected = numbers(runs / name), numbers(runs / like)
    assert ours.keys() == expected.keys()
    assert max(step for step, _ in ours) == STEPS
    for key, value in expected.items():
        assert ours[key] == pytest.approx(value, abs=1e-5), key
    for decay in (None, 0.9):
        ours_saved, expected_saved = (Checkpoints(runs / run / "checkpoints", keep=2).newest() for run in (name, like))
        assert ours_saved is not None
        assert expected_saved is not None
        assert ours_saved.tensors.keys() == expected_saved.tensors.keys()
        for key, tensor in weights_of_run(runs / like, decay).items():
            torch.testing.assert_close(weights_of_run(runs / name, decay)[key], tensor, atol=2e-5, rtol=0.0)
    found, wanted = (reconstruct(runs / run, 0.07).weights for run in (name, like))
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, atol=2e-5, rtol=0.0)


def test_tallies_are_means_over_the_steps_since_the_last_line(runs: Path) -> None:
    """Sample numbers of both parities in steps 2 and 3 (batch 16): means over 32 … 63, also after a stop at step 7."""
    for name in ("one", "four-ddp", "fsdp-241"):
        values = numbers(runs / name)
        assert [values[4, "number_0"], values[4, "number_1"]] == [47.0, 48.0]
        assert [values[8, "number_0"], values[8, "number_1"]] == [111.0, 112.0]


def test_one_failing_process_ends_all_and_only_it_says_why(runs: Path) -> None:
    told = {path.name: path.read_text() for path in runs.glob("*.txt")}
    assert told["broken-1.txt"] == "OSError: sample 13 is unreadable"
    assert told["broken-0.txt"].startswith("PeerFailed")
    assert told["poisoned-0.txt"].startswith("NumericalError: step 5: loss is nan")
    assert told["poisoned-1.txt"].startswith("PeerFailed")
    newest = Checkpoints(runs / "poisoned" / "checkpoints", keep=1).newest()
    assert newest is not None
    assert newest.step == 5
    assert all(torch.isfinite(tensor).all() for tensor in newest.tensors.values())
    assert len(list((runs / "poisoned").glob("bad-batch-00000005-process-?.safetensors"))) == 2


def test_a_damaged_part_is_found(runs: Path, tmp_path: Path) -> None:
    path = runs / "four-fsdp" / "checkpoints" / f"step-{STEPS:08d}"
    parts = sorted(path.glob("*.safetensors"))
    assert len(parts) == 4
    copy = tmp_path / path.name
    copy.mkdir()
    for file in path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert read_checkpoint(copy).step == STEPS
    data = bytearray(parts[2].read_bytes())
    data[-3] ^= 1
    (copy / parts[2].name).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"shard-00003.*damaged"):
        read_checkpoint(copy)
    (copy / parts[2].name).unlink()
    with pytest.raises(CheckpointError, match="shard-00003"):
        read_checkpoint(copy)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_kill_9_of_all_processes_changes_nothing(runs: Path, tmp_path: Path, parallel: str) -> None:
    """A checkpoint is written after every step, so that the kill mostly hits one being written."""
    job = f"killed:{parallel}:24"
    log = tmp_path / "killed" / "metrics.jsonl"
    chance = random.Random(3)
    for _ in range({"ddp": 2, "fsdp": 1}[parallel]):
        lines = _lines(log)
        with subprocess.Popen(
            _command(2, tmp_path, [job]), env=_environment(), stderr=subprocess.DEVNULL, start_new_session=True
        ) as launcher:
            began = time.monotonic()
            while _lines(log) in (0, lines) and launcher.poll() is None and time.monotonic() - began < 120.0:
                time.sleep(0.005)
            time.sleep(chance.uniform(0.0, 0.05))
            for process in (*_children(launcher.pid), launcher.pid):
                os.kill(process, signal.SIGKILL)
    launch(2, tmp_path, job)
    assert numbers(tmp_path / "killed") == numbers(runs / f"two-{parallel}")
    ours, expected = weights_of_run(tmp_path / "killed"), weights_of_run(runs / f"two-{parallel}")
    assert all(torch.equal(tensor, ours[name]) for name, tensor in expected.items())
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))
    kept, whole = (
        {path.name: path.read_bytes() for path in (run / "snapshots").iterdir()}
        for run in (tmp_path / "killed", runs / f"two-{parallel}")
    )
    assert len(whole) == STEPS // 3
    assert kept == whole


def _lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_sigterm_stops_all_processes_with_a_checkpoint(runs: Path, tmp_path: Path) -> None:
    log = tmp_path / "signalled" / "metrics.jsonl"
    with subprocess.Popen(
        _command(2, tmp_path, ["signalled:fsdp:0"]), env=_environment(), stderr=subprocess.DEVNULL
    ) as launcher:
        while not _lines(log) and launcher.poll() is None:
            time.sleep(0.005)
        os.kill(_children(launcher.pid)[1], signal.SIGTERM)  # one is told, all stop
        assert launcher.wait(120) == 0
    newest = Checkpoints(tmp_path / "signalled" / "checkpoints", keep=1).newest()
    assert newest is not None
    assert 0 < newest.step < 10**6


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    world = World(size=3, device=torch.device("cpu"))
    with pytest.raises(InvalidConfig, match="3 processes"):
        world.shard(range(16))
    assert [
        World(rank=rank, size=4, device=torch.device("cpu")).shard(range(16, 24)) for rank in range(4)
    ] == [range(16, 18), range(18, 20), range(20, 22), range(22, 24)]  # fmt: skip


def test_what_fsdp_cannot_cut_up_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="adamw8bit"):
        RunConfig(parallel="fsdp", optimizer=OptimizerConfig(kind="adamw8bit"))
