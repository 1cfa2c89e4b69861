"""The one loop that trains every task: batch, loss, gradient, step, average; stopped and resumed without a trace."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidConfig, NumericalError, OutputError, PeerFailed
from sfumato.files import make_folder
from sfumato.progress import Cancellation, OnProgress, Progress, ignore
from sfumato.runtime import compute_exactly, processor_name
from sfumato.toml_files import to_values
from sfumato.train.checkpoints import Checkpoints
from sfumato.train.distributed.ddp_and_fsdp import LossModule, distributed, prepare
from sfumato.train.distributed.process_group import World, join_world
from sfumato.train.distributed.sharded_tensors import gather
from sfumato.train.inputs.draws import Draws
from sfumato.train.logs.compute_log import SessionLog
from sfumato.train.logs.metrics_log import MetricsLog
from sfumato.train.logs.trackers import open_trackers
from sfumato.train.optim.ema import Ema, PowerEma
from sfumato.train.optim.loss_scaler import LossScaler
from sfumato.train.optim.optimizer_step import DTYPES, Stepper, check_device
from sfumato.train.optim.optimizers import build_optimizer
from sfumato.train.optim.posthoc_ema import Snapshots, snapshot_tensors
from sfumato.train.resume import newest_checkpoint, note_config, resume
from sfumato.train.run_folder import CHECKPOINTS, METRICS, VALIDATION, bad_batch
from sfumato.train.single_threaded_pool import single_threaded_pool
from sfumato.train.task import Batch, Task, TaskConfig, first_weights
from sfumato.train.train_state import TrainState
from sfumato.weights.mapped_file import TensorInfo
from sfumato.weights.save import write_safetensors

logger = logging.getLogger("sfumato")

_AHEAD = 2  # batches prepared while one is computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where training ended: the state, and whether all steps were done."""

    state: TrainState
    finished: bool


def train(
    task: Task,
    config: TaskConfig,
    folder: Path,
    *,
    start: nn.Module | None = None,
    started_from: str | None = None,
    device: torch.device | None = None,
    minutes: float | None = None,
    cancellation: Cancellation | None = None,
    on_progress: OnProgress = ignore,
) -> Outcome:
    """Train `task` in `folder`, going on from the newest checkpoint there if there is one.

    `folder` gets config.toml, metrics.jsonl, checkpoints/, snapshots/ and validation/. `start` gives the first weights
    in place of `task.build()`, and `started_from` says what they are, for the run's notes. After `minutes`, or when
    `cancellation` is requested, it stops between two steps with a checkpoint. Resumed on the same kind of machine with
    the same number of threads, every number is what it would have been.

    Under torchrun all processes call it alike, with a folder that they share; a CUDA device without a number is that of
    the process's place. The first process writes. Order and randomness don't depend on the number of processes, losses
    agree to rounding, and a run goes on with another number, or as another `parallel`. With FSDP the outcome's state is
    sharded; the checkpoint isn't, for whoever reads it.

    Raises `InvalidConfig` when the folder's run has another config, `NumericalError` when a loss or gradient is not
    finite (the batch is saved), `OutputError` when the disk is full (the checkpoints before stay), `PeerFailed`
    when another process raised what counts, and `PeerGone` when one has ended without a word.
    """
    world = join_world(device)
    with _Loop(task, config, folder, start, world, cancellation or Cancellation(), started_from) as loop:
        return loop.run(None if minutes is None else time.monotonic() + 60.0 * minutes, on_progress)


@contextlib.contextmanager
def stopping_on_signals(cancellation: Cancellation) -> Iterator[None]:
    """Within this, Ctrl-C and SIGTERM ask training to stop with a checkpoint; a second Ctrl-C stops it at once."""

    def ask(number: int, frame: object) -> None:
        if cancellation.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        cancellation.cancel()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Loop:
    """One call of `train`: what it holds, and the steps it takes."""

    def __init__(
        self,
        task: Task,
        config: TaskConfig,
        folder: Path,
        start: nn.Module | None,
        world: World,
        cancellation: Cancellation,
        started_from: str | None,
    ) -> None:
        self.task, self.run_config, self.folder, self.world = task, config.run, folder, world
        self.cancellation = cancellation
        self.config, self.values = config, to_values(config)
        check_device(config.run, world.device)
        compute_exactly(world.device, DTYPES[config.run.precision])
        world.shard(self._numbers(0)[0])
        make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{folder}: no permission to write there: choose another folder")
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, keep=config.run.keep)
        self.score: float | None = None
        self._build(start)
        saved = world.all_or_fail(lambda: newest_checkpoint(self.checkpoints, world))
        if saved is not None:
            world.all_or_fail(lambda: resume(self.state, saved, config, folder))
            self.score = saved.score
        self.loaders = single_threaded_pool(config.run.workers, "samples")
        if world.is_main:
            if saved is not None:
                note_config(config, folder)
            self.metrics = MetricsLog(folder / METRICS, after=self.state.step)
            self.snapshots = Snapshots(folder, after=self.state.step)
            self.sessions = SessionLog(
                folder,
                device=processor_name(world.device),
                devices=world.size,
                step=self.state.step,
                start=started_from,
            )
        self.trackers = open_trackers(config.run, folder, self.values, after=self.state.step) if world.is_main else []

    def _build(self, start: nn.Module | None) -> None:
        """The module and its averages, as this process has them, and the optimiser."""
        config, world = self.run_config, self.world
        self.sharded = config.parallel == "fsdp" and world.size > 1
        module = (start or first_weights(self.task, config.seed)).to(world.device)
        # FSDP takes contiguous weights only; bitsandbytes walks through memory, in which its state is contiguous
        if config.channels_last and not self.sharded and config.optimizer.kind != "adamw8bit":
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        world.broadcast_module(module)
        learned = {parameter for group in self.task.groups(module) for parameter in group.parameters}
        for parameter in module.parameters():
            parameter.requires_grad_(parameter in learned)
        averages = [Ema(module, decay) for decay in (config.ema_decay, *config.ema_decays)]
        powers = [PowerEma(module, sigma_rel) for sigma_rel in config.ema_sigma_rels]
        # where weights are sharded, the averages are gathered in this one to be validated
        self.gathered = Ema(module, 0.0).module if self.sharded and world.is_main else None
        prepare(module, config)
        kept = [*(average.module for average in averages), *(power.module for power in powers)]
        loss = distributed(LossModule(self.task, module), kept, config.parallel, world)
        groups = self.task.groups(module)
        self.state = TrainState(
            module,
            averages[0],
            build_optimizer(config.optimizer, groups, module),
            others=tuple(averages[1:]),
            powers=tuple(powers),
            scaler=LossScaler(enabled=config.precision == "float16"),
        )
        self.stepper = Stepper(loss, groups, self.state, config, world)

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.loaders.shutdown(cancel_futures=True)
        for tracker in self.trackers:
            tracker.close()
        if self.world.is_main:
            self.metrics.close()
        self.checkpoints.close()

    def run(self, deadline: float | None, on_progress: OnProgress) -> Outcome:
        config = self.run_config
        on_progress(Progress(stage="train", step=self.state.step, steps=config.steps, images=config.batch))
        self.state.module.train()
        saved_at = rated_at = time.monotonic()
        saved_step = rated_step = self.state.step
        noted = False
        pending: deque[Future[list[tuple[Batch, Draws]]]] = deque()
        while self.state.step < config.steps:
            now = time.monotonic()
            over = self.cancellation.requested or (deadline is not None and now > deadline)
            stop, due = self.world.any([over, now - saved_at > 60.0 * config.checkpoint_minutes])
            if stop:
                break
            if due:
                self._save()
                saved_at, saved_step = now, self.state.step
            while len(pending) < _AHEAD and self.state.step + len(pending) < config.steps:
                pending.append(self.loaders.submit(self._load, self.state.step + len(pending)))
            measured = self._step(self.world.all_or_fail(pending.popleft().result))
            if self.world.is_main and not noted:  # a run that is refused before leaves none
                note_config(self.config, self.folder)
                noted = True
            if self.state.step % config.snapshot_every == 0 or self.state.step == config.steps:
                self._keep_snapshot()
            on_progress(Progress(stage="train", step=self.state.step, steps=config.steps, images=config.batch))
            if self.state.step % config.log_every == 0:
                now = time.monotonic()
                rate = (self.state.step - rated_step) * config.batch / max(now - rated_at, 1e-9)
                self._log(measured, rate)
                rated_at, rated_step = now, self.state.step
            if config.validate_every and self.state.step % config.validate_every == 0:
                self._validate()
        for waiting in pending:
            waiting.cancel()
        if self.world.broadcast(saved_step != self.state.step or not self.checkpoints.any()):
            self._save()
        self.world.all_or_fail(self.checkpoints.wait)
        if self.world.is_main:
            self.sessions.write(self.state.step)
        return Outcome(state=self.state, finished=self.state.step >= config.steps)

    def _numbers(self, step: int) -> list[range]:
        """The samples of a step's micro-batches, over all processes."""
        config = self.run_config
        size = config.batch // config.accumulate
        first = step * config.batch
        return [range(first + i * size, first + (i + 1) * size) for i in range(config.accumulate)]

    def _load(self, step: int) -> list[tuple[Batch, Draws]]:
        """This process's part of the micro-batches of a step."""
        seed = self.run_config.seed
        device = self.world.device if self.run_config.resident else None
        parts = [Draws(seed, step, self.world.shard(numbers), device) for numbers in self._numbers(step)]
        return [(self.task.load(draws), draws) for draws in parts]

    def _step(self, parts: Sequence[tuple[Batch, Draws]]) -> dict[str, float]:
        """One optimiser step, or, before one that would ruin the weights, the batch and the state on the disk."""
        try:
            return self.stepper.step(parts)
        except NumericalError as error:
            path = self._save_batch(parts)
            self._save()
            self.world.all_or_fail(self.checkpoints.wait)
            if not self.world.is_main:
                raise PeerFailed(str(error)) from error
            raise NumericalError(
                f"step {self.state.step}: {error}; stopped before it, with the batch in {path} "
                f"and a checkpoint beside it: look at the batch, or go on with a lower learning rate"
            ) from error
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = " ".join(str(error).split())[:200]
            raise InvalidConfig(f"run.compile: torch can't compile here ({reason}): set it to false") from error

    def _save_batch(self, parts: Sequence[tuple[Batch, Draws]]) -> Path:
        """This process's samples of the step."""
        path = bad_batch(self.folder, self.state.step, self.world.rank if self.world.size > 1 else None)
        tensors = {name: torch.cat([batch[name] for batch, _ in parts]) for name in parts[0][0]}
        write_safetensors(
            path,
            {name: TensorInfo(dtype=tensor.dtype, shape=tuple(tensor.shape)) for name, tensor in tensors.items()},
            tensors.__getitem__,
            metadata={"samples": str([number for _, draws in parts for number in draws.numbers])},
            overwrite=True,
        )
        return path

    def _log(self, measured: Mapping[str, float], rate: float) -> None:
        values = dict(measured)
        for name, tally in self.state.tallies.items():
            values |= {f"{name}_{i}": sum_ / count for i, (sum_, count) in enumerate(tally.tolist()) if count}
        self.state.tallies.clear()
        if not self.world.is_main:
            return
        left = (self.run_config.steps - self.state.step) * self.run_config.batch / max(rate, 1e-9)
        self._write(values)
        logger.info(
            "step %d of %d, loss %.4f, %.1f samples/s, %.0f minutes left",
            self.state.step, self.run_config.steps, measured["loss"], rate, left / 60.0,
        )  # fmt: skip

    def _write(self, values: Mapping[str, float]) -> None:
        self.metrics.write({"step": self.state.step, **values})
        for tracker in self.trackers:
            tracker.write(self.state.step, values)

    def _validate(self) -> None:
        averages = {"" if ema is self.state.ema else f"-ema-{ema.decay}": ema for ema in self.state.averages}
        for name, ema in averages.items():
            weights = {key: gather(tensor) for key, tensor in ema.module.state_dict().items()} if self.sharded else {}
            if self.gathered is not None:
                self.gathered.load_state_dict(weights)
            module = self.gathered or ema.module
            measured = self.world.all_or_fail(lambda: self._measure(module, name) if self.world.is_main else {})  # noqa: B023
            if not name:
                self.score = self.world.broadcast(measured.get("score"))

    def _measure(self, module: nn.Module, name: str) -> dict[str, float]:
        """Validate one average, whose `name` is empty for the one that is published."""
        folder = self.folder / VALIDATION
        folder.mkdir(exist_ok=True)
        picture = folder / f"step-{self.state.step:08d}{name}.png"
        measured = dict(self.task.validate(module, picture))
        self._write({f"validation_{key}{name}": value for key, value in measured.items()})
        for tracker in self.trackers:
            if picture.is_file():
                tracker.draw(self.state.step, picture)
        logger.info(
            "step %d, validation%s: %s",
            self.state.step, name, ", ".join(f"{key} {value:.4g}" for key, value in measured.items()),
        )  # fmt: skip
        return measured

    def _keep_snapshot(self) -> None:
        """Written before any checkpoint of this step or later: no run goes on behind a snapshot that is missing."""
        if not self.state.powers:
            return
        found: dict[str, Tensor] = {}
        for name, tensor in snapshot_tensors(self.state.powers).items():
            gathered = gather(tensor)  # all processes take part
            if self.world.is_main:
                found[name] = gathered.to("cpu")
        self.world.all_or_fail(lambda: self._write_snapshot(found))

    def _write_snapshot(self, tensors: Mapping[str, Tensor]) -> None:
        if self.world.is_main:
            self.snapshots.write(self.state.step, tensors, self.run_config.ema_sigma_rels)

    def _save(self) -> None:
        if self.world.is_main:
            note_config(self.config, self.folder)
        state, checkpoints = self.state, self.checkpoints
        if self.sharded:
            checkpoints.save_parts(state.step, state.tensors(), self.values, self.score, self.world)
        else:
            self.world.all_or_fail(self._save_first)
        if self.world.is_main:
            self.sessions.write(self.state.step)

    def _save_first(self) -> None:
        if self.world.is_main:
            self.checkpoints.save(self.state.step, self.state.snapshot(), self.values, self.score)
