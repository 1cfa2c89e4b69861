"""The one loop that trains every task: batch, loss, gradient, step, average; stopped and resumed without a trace."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidConfig, NumericalError
from sfumato.files import write_text
from sfumato.progress import Cancellation, OnProgress, Progress, ignore
from sfumato.train.checkpoints import Checkpoints, Saved
from sfumato.train.config import FREE, RunConfig
from sfumato.train.draws import Draws
from sfumato.train.ema import Ema
from sfumato.train.metrics import MetricsLog
from sfumato.train.optimizers import ParameterGroup, build_optimizer, learning_rate, set_rate
from sfumato.train.state import TrainState
from sfumato.train.toml import from_values, to_toml, to_values
from sfumato.weights.save import write_safetensors
from sfumato.weights.stored import TensorInfo

logger = logging.getLogger("sfumato")

Batch = dict[str, Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHECKPOINTS, CONFIG = "checkpoints", "config.toml"  # within a run's folder
_AHEAD = 2  # batches prepared while one is computed


class TaskConfig(Protocol):
    """A task's whole config: a frozen dataclass with the run's options in `run`."""

    @property
    def run(self) -> RunConfig: ...


class Task(Protocol):
    """What the loop needs to know of what it trains."""

    def build(self) -> nn.Module:
        """The module with its first weights; the caller has seeded torch's global generator."""
        ...

    def groups(self, module: nn.Module) -> Sequence[ParameterGroup]:
        """The parameters that learn."""
        ...

    def load(self, draws: Draws) -> Batch:
        """The samples `draws.numbers`, on the CPU, as tensors whose first dimension counts them. Called in threads."""
        ...

    def loss(self, module: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The scalar to minimise, a mean over the batch, and what else to log."""
        ...

    def validate(self, module: nn.Module, picture: Path) -> Mapping[str, float]:
        """Measure the averaged weights on held-out samples and draw them into the PNG `picture`. "score" is what
        checkpoints are compared by, lower is better."""
        ...


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
    device: torch.device | None = None,
    minutes: float | None = None,
    cancellation: Cancellation | None = None,
    on_progress: OnProgress = ignore,
) -> Outcome:
    """Train `task` in `folder`, going on from the newest checkpoint there if there is one.

    `folder` gets config.toml, metrics.jsonl, checkpoints/ and validation/. `start` gives the first weights in place of
    `task.build()`. After `minutes`, or when `cancellation` is requested, it stops between two steps with a checkpoint.
    Resumed on the same kind of machine with the same number of threads, every number is what it would have been.

    Raises `InvalidConfig` when the folder's run has another config, `NumericalError` when a loss or gradient is not
    finite (the batch is saved), `OutputError` when the disk is full (the checkpoints before stay).
    """
    loop = _Loop(task, config, folder, start, device or torch.device("cpu"), cancellation or Cancellation())
    with loop:
        return loop.run(None if minutes is None else time.monotonic() + 60.0 * minutes, on_progress)


def first_weights(task: Task, seed: int) -> nn.Module:
    """The task's module with the random weights that `seed` decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.build()


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
        device: torch.device,
        cancellation: Cancellation,
    ) -> None:
        self.task, self.run_config, self.folder, self.device = task, config.run, folder, device
        self.cancellation = cancellation
        self.kind, self.values = type(config), to_values(config)
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, keep=config.run.keep)
        self.loaders = ThreadPoolExecutor(config.run.workers, thread_name_prefix="samples")
        module = (start or first_weights(task, config.run.seed)).to(device)
        if config.run.channels_last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.groups = task.groups(module)
        self.state = TrainState(
            module, Ema(module, config.run.ema_decay), build_optimizer(config.run.optimizer, self.groups)
        )
        self.score: float | None = None
        saved = self.checkpoints.newest()
        if saved is not None:
            self._resume(saved)
        self._write_config(to_toml(config))
        self.metrics = MetricsLog(folder / "metrics.jsonl", after=self.state.step)

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.loaders.shutdown(cancel_futures=True)
        self.metrics.close()
        self.checkpoints.close()

    def run(self, deadline: float | None, on_progress: OnProgress) -> Outcome:
        config = self.run_config
        on_progress(Progress(stage="train", step=self.state.step, steps=config.steps))
        self.state.module.train()
        saved_at = rated_at = time.monotonic()
        saved_step = rated_step = self.state.step
        pending: deque[Future[list[tuple[Batch, Draws]]]] = deque()
        while self.state.step < config.steps:
            now = time.monotonic()
            if self.cancellation.requested or (deadline is not None and now > deadline):
                break
            if now - saved_at > 60.0 * config.checkpoint_minutes:
                self._save()
                saved_at, saved_step = now, self.state.step
            while len(pending) < _AHEAD and self.state.step + len(pending) < config.steps:
                pending.append(self.loaders.submit(self._load, self.state.step + len(pending)))
            measured = self._step(pending.popleft().result())
            on_progress(Progress(stage="train", step=self.state.step, steps=config.steps))
            if self.state.step % config.log_every == 0:
                now = time.monotonic()
                rate = (self.state.step - rated_step) * config.batch / max(now - rated_at, 1e-9)
                self._log(measured, rate)
                rated_at, rated_step = now, self.state.step
            if config.validate_every and self.state.step % config.validate_every == 0:
                self._validate()
        for waiting in pending:
            waiting.cancel()
        if saved_step != self.state.step or not self.checkpoints.any():
            self._save()
        self.checkpoints.wait()
        return Outcome(state=self.state, finished=self.state.step >= config.steps)

    def _write_config(self, text: str) -> None:
        path = self.folder / CONFIG
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text, overwrite=True)

    def _load(self, step: int) -> list[tuple[Batch, Draws]]:
        """The micro-batches of a step."""
        config = self.run_config
        size = config.batch // config.accumulate
        first = step * config.batch
        parts = [range(first + i * size, first + (i + 1) * size) for i in range(config.accumulate)]
        return [(self.task.load(draws), draws) for draws in (Draws(config.seed, step, part) for part in parts)]

    def _step(self, parts: Sequence[tuple[Batch, Draws]]) -> dict[str, float]:
        """One optimiser step over micro-batches; returns what to log."""
        config, state = self.run_config, self.state
        rate = learning_rate(config.optimizer, state.step, config.steps)
        set_rate(state.optimizer, rate)
        state.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        buffers = [buffer.clone() for buffer in state.module.buffers()]  # the forward pass changes those of batch norms
        for batch, draws in parts:
            on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
            with torch.autocast(self.device.type, DTYPES[config.precision], enabled=config.precision != "float32"):
                loss, measured = self.task.loss(state.module, on_device, draws)
            torch.autograd.backward(loss / len(parts))
            for name, value in {"loss": loss, **measured}.items():
                totals[name] = totals.get(name, 0.0) + value.detach().float() / len(parts)
        for group in self.groups:
            norm = nn.utils.clip_grad_norm_(group.parameters, config.clip_norm or math.inf)
            totals[f"gradient_{group.name}"] = norm.detach()
        values = {name: float(value) for name, value in totals.items()}
        wrong = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if wrong:
            for buffer, before in zip(state.module.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self._stop(f"{wrong} is {values[wrong]}", parts)
        state.optimizer.step()
        state.step += 1
        state.ema.update(state.module, state.step)
        return {**values, "learning_rate": rate}

    def _stop(self, problem: str, parts: Sequence[tuple[Batch, Draws]]) -> NoReturn:
        """Before a step that would ruin the weights, with the batch and the state before it on the disk."""
        path = self.folder / f"bad-batch-{self.state.step:08d}.safetensors"
        tensors = {name: torch.cat([batch[name] for batch, _ in parts]) for name in parts[0][0]}
        write_safetensors(
            path,
            {name: TensorInfo(dtype=tensor.dtype, shape=tuple(tensor.shape)) for name, tensor in tensors.items()},
            tensors.__getitem__,
            metadata={"samples": str([number for _, draws in parts for number in draws.numbers])},
            overwrite=True,
        )
        self._save()
        self.checkpoints.wait()
        raise NumericalError(
            f"step {self.state.step}: {problem}; stopped before it, with the batch in {path} "
            f"and a checkpoint beside it: look at the batch, or go on with a lower learning rate"
        )

    def _log(self, measured: Mapping[str, float], rate: float) -> None:
        left = (self.run_config.steps - self.state.step) * self.run_config.batch / max(rate, 1e-9)
        self.metrics.write({"step": self.state.step, **measured})
        logger.info(
            "step %d of %d, loss %.4f, %.1f samples/s, %.0f minutes left",
            self.state.step, self.run_config.steps, measured["loss"], rate, left / 60.0,
        )  # fmt: skip

    def _validate(self) -> None:
        folder = self.folder / "validation"
        folder.mkdir(exist_ok=True)
        measured = dict(self.task.validate(self.state.ema.module, folder / f"step-{self.state.step:08d}.png"))
        self.score = measured.get("score")
        self.metrics.write(
            {"step": self.state.step, **{f"validation_{name}": value for name, value in measured.items()}}
        )
        logger.info(
            "step %d, validation: %s",
            self.state.step, ", ".join(f"{name} {value:.4g}" for name, value in measured.items()),
        )  # fmt: skip

    def _save(self) -> None:
        self.checkpoints.save(self.state.step, self.state.snapshot(), self.values, self.score)

    def _resume(self, saved: Saved) -> None:
        # an option that the run's version didn't have yet had the effect of today's default
        changed = _changes(to_values(from_values(self.kind, saved.config)), self.values)
        if changed:
            raise InvalidConfig(
                f"{saved.path} is of a run with another {changed[0]}: give the config it began with "
                f"({self.folder / CONFIG}), or another folder"
            )
        self.state.restore(saved.tensors, saved.step)
        self.score = saved.score
        logger.info("going on after step %d, from %s", saved.step, saved.path)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Names of the options that differ and matter."""
    found: list[str] = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _changes(before, after, f"{where}{name}.")
        elif before != after and not (where == "run." and name in FREE):
            found.append(where + name)
    return found
