"""The contenders' processes seen from outside: started, asked one thing at a time, and ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

from sfumato.bench.bench_plan import Plan
from sfumato.errors import SfumatoError

_PATIENCE = 10.0  # seconds for a process that was told to end
_LINES = 12  # of what a process said last
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class ContenderFailed(SfumatoError):
    """A contender's process said that it failed, or died; the message is the reason, `trace` the last lines it said."""

    def __init__(self, message: str, trace: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.trace = tuple(trace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process that has loaded its contender: `first` is what it said of that."""

    process: subprocess.Popen[str]
    errors: IO[bytes]
    first: dict[str, Any]

    def ask(self, do: str, argument: object = None, *, patience: float | None = None) -> dict[str, Any]:
        """Have the contender take its turn, in `patience` seconds. Raises `ContenderFailed`."""
        return _exchange(self.process, self.errors, {"do": do, "with": argument}, patience)


@contextlib.contextmanager
def worker(
    name: str, plan: Plan, model: Path, answer: Path, *, patience: float | None = None, stepped: bool = True
) -> Iterator[Worker]:
    """A contender in a process of its own for the time of the block. Raises `ContenderFailed` where it doesn't load.

    `answer` is the file for what its first step gave; without `stepped` that is left to `ask("first")`. The
    process is in a session of its own, so that Ctrl-C reaches only us, and we end it.
    """
    environment = dict(os.environ)
    if plan.threads is not None:
        environment |= dict.fromkeys(_THREADS, str(plan.threads))
    with TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "sfumato.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            orders = {
                "contender": name,
                "plan": plan.to_values(),
                "model": str(model),
                "answer": str(answer),
                "stepped": stepped,
            }
            yield Worker(process=process, errors=errors, first=_exchange(process, errors, orders, patience))
        finally:
            _end(process)


def _exchange(
    process: subprocess.Popen[str], errors: IO[bytes], order: dict[str, Any], patience: float | None
) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    line = ""
    with contextlib.suppress(BrokenPipeError), _killed_after(process, patience) as late:
        process.stdin.write(json.dumps(order) + "\n")  # a broken pipe: it died, and why is said below
        process.stdin.flush()
        line = process.stdout.readline()
    if late.is_set():
        raise ContenderFailed(f"it took longer than the {patience:.0f} s there were")
    if not line:
        raise ContenderFailed(*_reason(process, errors))
    answer: dict[str, Any] = json.loads(line)
    if "failed" in answer:
        raise ContenderFailed(str(answer["failed"]), answer["trace"])
    return answer


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[str], patience: float | None) -> Iterator[threading.Event]:
    """The process for the time of the block, and no longer than that; the event says that it was too slow."""
    late = threading.Event()
    if patience is None:
        yield late
        return

    def kill() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(max(patience, 0.0), kill)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _reason(process: subprocess.Popen[str], errors: IO[bytes]) -> tuple[str, list[str]]:
    """Why it ended, and what it said last."""
    code = process.wait(_PATIENCE)
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    if code == -9:
        reason = "killed, most likely for want of memory"
    else:
        reason = lines[-1][:200] if lines else f"exit code {code}"
    return f"its process ended ({reason})", lines[-_LINES:]


def _end(process: subprocess.Popen[str]) -> None:
    """A process in the middle of a step isn't waited for."""
    assert process.stdin is not None and process.stdout is not None
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not yet sent to a process that is gone
            pipe.close()


@contextlib.contextmanager
def answers_folder() -> Iterator[Path]:
    """A place for the contenders' answers, gone with the block."""
    with TemporaryDirectory(prefix="sfumato-bench-") as name:
        yield Path(name)
