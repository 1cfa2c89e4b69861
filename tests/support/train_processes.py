"""What each process of a distributed test runs: `python -m torch.distributed.run … train_processes.py FOLDER JOB…`.

A job is NAME:PARALLEL:STEPS, which is how far the run in FOLDER/NAME gets before it is asked to stop; every job of a
launch shares the seconds that importing torch takes.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from sfumato.errors import NumericalError, OutputError, PeerFailed
from sfumato.progress import Cancellation
from sfumato.train.run_config import OptimizerConfig
from sfumato.train.task import ParameterGroup
from sfumato.train.trainer import stopping_on_signals, train
from support.train_toy import ToyTask, ToyTraining, toy_config

STEPS = 24


class Blocks(nn.Module):
    """A list of blocks, for FSDP to cut up one by one, between a first and a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 5, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.GroupNorm(1, 5)) for _ in range(2))
        self.linear = nn.Linear(180, 5)
        self.spare = nn.Parameter(torch.ones(1))  # in no loss, as a critic before its first step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in self.blocks:
            x = x + nn.functional.silu(block(x))
        return self.linear(x.flatten(1))


class BlocksTask(ToyTask):
    """The toy's data, without layers that look at the whole batch."""

    def __init__(self, config: ToyTraining, *, stop_at: int = STEPS, cancellation: Cancellation | None = None) -> None:
        super().__init__(config)
        self.stop_at, self.cancellation = stop_at, cancellation

    def build(self) -> nn.Module:
        return Blocks()

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        return [ParameterGroup("all", list(module.parameters()), may_lack_gradient=True)]

    def loss(self, module, batch, draws):
        loss, measured = super().loss(module, batch, draws)
        kinds = torch.tensor([number % 2 for number in draws.numbers])
        counts = torch.bincount(kinds, minlength=2)
        values = torch.tensor([float(number) for number in draws.numbers])
        measured["number"] = torch.stack([torch.bincount(kinds, values, minlength=2), counts], dim=1)
        if self.cancellation is not None and draws.step == self.stop_at - 1 and int(os.environ.get("RANK", "0")) == 0:
            self.cancellation.cancel()  # one process is asked; all stop
        return loss, measured


class Broken(BlocksTask):
    """The last process can't read the samples of step 3."""

    def load(self, draws):
        if draws.step == 3 and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            raise OSError("sample 13 is unreadable")
        return super().load(draws)


class Poisoned(BlocksTask):
    """One process's samples of step 5 are no numbers."""

    def load(self, draws):
        batch = super().load(draws)
        if draws.step == 5 and int(os.environ["RANK"]) == 1:
            batch["inputs"] = batch["inputs"] * float("nan")
        return batch


def config_of(name: str, parallel: str) -> ToyTraining:
    kind = "muon" if "muon" in name else "adamw"
    optimizer = OptimizerConfig(kind=kind, learning_rate=0.01, warmup_steps=5, schedule="trapezoid", decay_share=0.5)
    return toy_config(
        steps=STEPS, batch=16, parallel=parallel, optimizer=optimizer, ema_decays=(0.9,), log_every=2, validate_every=8,
        checkpoint_minutes=60.0,
    )  # fmt: skip


def main(folder: Path, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    for job in jobs:
        name, parallel, steps = job.split(":")
        config = config_of(name, parallel)
        if name in ("broken", "poisoned"):
            task = {"broken": Broken, "poisoned": Poisoned}[name](config)
            _report(folder, task, config, name)
            continue
        cancellation = Cancellation()
        if name == "signalled":
            run = dataclasses.replace(config.run, steps=10**6, validate_every=0)
            config = dataclasses.replace(config, run=run)
            with stopping_on_signals(cancellation):
                assert not train(BlocksTask(config), config, folder / name, cancellation=cancellation).finished
            continue
        task = BlocksTask(config, stop_at=int(steps), cancellation=cancellation)
        if name.startswith("killed"):
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, checkpoint_minutes=0.0))
        train(task, config, folder / name, cancellation=cancellation)


def _report(folder: Path, task: BlocksTask, config: ToyTraining, name: str) -> None:
    """What the process was told, in a file of its own."""
    try:
        train(task, config, folder / name)
    except (NumericalError, OSError, OutputError, PeerFailed) as error:
        (folder / f"{name}-{os.environ['RANK']}.txt").write_text(f"{type(error).__name__}: {error}")


def _refuse_threads() -> None:
    """Fail the launch if a thread that exchanges tensors outlives the process group: it aborts the process if it wants
    the interpreter's lock while that shuts down ("terminate called without an active exception")."""
    if any(path.read_text().strip() == "pt_gloo_runloop" for path in Path("/proc/self/task").glob("*/comm")):
        sys.stderr.write("gloo's threads are still there after the process group's end\n")
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    atexit.register(_refuse_threads)  # the last to be called, so after the group has ended
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(Path(sys.argv[1]), sys.argv[2:])
