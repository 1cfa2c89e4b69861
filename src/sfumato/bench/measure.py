"""The benchmark itself: everyone loads, then they take turns, A B C, A B C …, each in its own process."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.bench.bench_plan import Plan, What
from sfumato.bench.contender_processes import ContenderFailed, Worker, answers_folder, worker
from sfumato.bench.contenders import Contender
from sfumato.bench.worker import MACHINE
from sfumato.runtime import free_memory, logger

_CALM = 0.3  # seconds between turns: threads that are done may spin for a while
_BLOCK = 16 * 2**20

OnTurn = Callable[[str], None]
"""Told what happens next, in a few words."""


@dataclass(slots=True, kw_only=True)
class Row:
    """What was seen of one contender. `why_not` says why nothing was; `ended`, why no more was after some rounds.

    Seconds are lists, one a round; memory is bytes. `error` is the relative difference of its first step's answer to
    the first contender's. `runs` is what computed, `trace` what its process said last where it failed.
    """

    contender: Contender
    why_not: str = ""
    trace: tuple[str, ...] = ()
    ended: str = ""
    runs: str = ""
    dtype: str = ""
    imports: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    first_step: list[float] = field(default_factory=list)
    processor_load: list[float] = field(default_factory=list)
    processor_first_step: list[float] = field(default_factory=list)
    seconds: dict[What, list[float]] = field(default_factory=dict)
    processor_seconds: dict[What, list[float]] = field(default_factory=dict)
    peak: int | None = None
    private: int | None = None
    device_peak: int | None = None
    error: float | None = None

    def median(self, what: What) -> float | None:
        """Seconds of the middle round; None where it wasn't measured."""
        found = self.seconds.get(what)
        return statistics.median(found) if found else None

    def note_load(self, first: Mapping[str, Any]) -> None:
        """Keep what a process said when it had loaded."""
        self.runs, self.dtype, self.private = first["runs"], first["dtype"], first["private"]
        for name in ("imports", "load", "processor_load"):
            getattr(self, name).append(first[name])
        self.note_memory(first)

    def note_first_step(self, answer: Mapping[str, Any]) -> None:
        """Keep what a process said after its first step."""
        self.first_step.append(answer["first_step"])
        self.processor_first_step.append(answer["processor_first_step"])
        self.note_memory(answer)

    def note(self, what: What, seen: Mapping[str, Any]) -> None:
        """Keep what a process said of one turn."""
        self.seconds.setdefault(what, []).append(seen["seconds"])
        self.processor_seconds.setdefault(what, []).append(seen["processor_seconds"])
        self.note_memory(seen)

    def note_memory(self, answer: Mapping[str, Any]) -> None:
        """Keep the most memory so far, which every answer says."""
        self.peak = max(answer["peak"], self.peak or 0)
        if answer["device_peak"] is not None:
            self.device_peak = max(answer["device_peak"], self.device_peak or 0)

    def note_failure(self, error: ContenderFailed, what: Sequence[What]) -> None:
        """Note that the contender has failed: after some rounds of all of `what`, or with nothing measured."""
        self.trace = error.trace
        if all(self.seconds.get(each) for each in what):
            self.ended = str(error)
        else:
            self.why_not = str(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All rows in the contenders' order. `operations` are those of one step and one decode, `gemm` the best GFLOP/s of
    a matrix product that was seen between the turns, by dtype."""

    plan: Plan
    machine: dict[str, Any]
    operations: dict[str, int]
    gemm: dict[str, float]
    rows: list[Row]
    fresh: bool

    @property
    def first(self) -> Row | None:
        """The contender the others are compared with: the first who ran."""
        return next((row for row in self.rows if not row.why_not), None)

    def ratio(self, row: Row, what: What) -> float | None:
        """A contender's time over the first's: the median of the rounds' ratios, which a slow round leaves alone."""
        first = self.first
        if first is None or not row.seconds.get(what) or not first.seconds.get(what):
            return None
        pairs = zip(row.seconds[what], first.seconds[what], strict=False)
        return statistics.median(own / theirs for own, theirs in pairs)

    def gflops(self, row: Row) -> float | None:
        """Operations of the plain network a second, in its guided steps."""
        seconds = row.median("step")
        return self.operations["step"] / seconds / 1e9 if seconds else None

    def share_of_peak(self, row: Row) -> float | None:
        """Share of what a matrix product of the same dtype reaches here."""
        gflops, peak = self.gflops(row), self.gemm.get(row.dtype)
        return gflops / peak if gflops and peak else None


def measure(
    plan: Plan,
    contenders: Sequence[Contender],
    model: Path,
    *,
    on_turn: OnTurn = lambda _: None,
    patience: float | None = None,
    until: float | None = None,
) -> Results:
    """Measure the contenders on the model at that path.

    One that isn't installed, fails, or takes more than `patience` seconds for one answer has a row that says why, and
    the others go on. After `until`, on `time.monotonic`'s clock, nobody gets another turn. Raises `ContenderFailed`
    where the machine itself can't be measured.
    """
    on_turn("reading the model once, so that all find it in the file cache")
    _warm(model)
    rows = [Row(contender=contender, why_not=contender.missing()) for contender in contenders]
    fresh = plan.fresh if plan.fresh is not None else _too_large(model, len(rows))
    with answers_folder() as answers, contextlib.ExitStack() as everyone:
        on_turn("measuring the machine")
        machine = everyone.enter_context(worker(MACHINE, plan, model, answers / MACHINE))
        session = _Session(plan=plan, rows=rows, model=model, answers=answers)
        gemm: dict[str, float] = {}
        for number, row in ((number, row) for number in range(plan.rounds) for row in rows):
            if row.why_not or row.ended:
                continue
            left = _least(patience, until - time.monotonic() if until is not None else None)
            on_turn(f"round {number + 1} of {plan.rounds}: {row.contender.name}")
            with contextlib.ExitStack() as only_now:
                session.turn(row, only_now if fresh else everyone, left)
                if fresh:
                    session.workers.pop(row.contender.name, None)
            if row.dtype:
                time.sleep(_CALM)
                best = machine.ask("gemm", row.dtype)["gflops"]
                gemm[row.dtype] = max(best, gemm.get(row.dtype, 0.0))
        compare(rows, answers)
        facts = dict(machine.first)
        return Results(plan=plan, machine=facts, operations=facts.pop("operations"), gemm=gemm, rows=rows, fresh=fresh)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """What one contender's turn needs: who takes part, where things are, and the processes there are."""

    plan: Plan
    rows: Sequence[Row]
    model: Path
    answers: Path
    workers: dict[str, Worker] = field(default_factory=dict)

    def turn(self, row: Row, stack: contextlib.ExitStack, patience: float | None) -> None:
        """One contender's turn in one round; it loads first where it isn't there, into a process of that stack."""
        name, plan = row.contender.name, self.plan
        try:
            if patience is not None and patience <= 0:
                raise ContenderFailed("the time was over before its turn")
            if name not in self.workers:
                answer = self.answers / f"{name}.npy"
                self.workers[name] = stack.enter_context(worker(name, plan, self.model, answer, patience=patience))
                row.note_load(self.workers[name].first)
                row.note_first_step(self.workers[name].first)
            if (
                row.contender.kind == "engine"
                and row.runs != name
                and any(other.contender.name == row.runs for other in self.rows)
            ):
                raise ContenderFailed(f"{row.runs} runs in its place here")
            for what, count in (("step", plan.steps), ("decode", None), ("image", plan.image_steps)):
                if what in plan.what:
                    seen = self.workers[name].ask(what, count, patience=patience)
                    row.note(what, seen)
        except ContenderFailed as error:
            row.note_failure(error, plan.what)
            logger.warning("contender %s: %s", name, error)


def _least(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)


def compare(rows: Sequence[Row], answers: Path) -> None:
    """The error of each first step's answer, relative to the first one's there is."""
    import numpy as np

    reference = None
    for row in rows:
        path = answers / f"{row.contender.name}.npy"
        if row.why_not or not path.is_file():
            continue
        answer = np.load(path, allow_pickle=False).astype(np.float64)
        reference = answer if reference is None else reference
        row.error = float(np.linalg.norm(answer - reference) / np.linalg.norm(reference))


def _warm(model: Path) -> None:
    for file in [model] if model.is_file() else sorted(model.rglob("*")):
        if file.is_file():
            with file.open("rb", buffering=0) as opened:
                while opened.read(_BLOCK):
                    pass


def _too_large(model: Path, contenders: int) -> bool:
    """Whether all contenders at once wouldn't fit: each holds the weights in float32 at most twice, and some
    gigabyte."""
    files = [model] if model.is_file() else [file for file in model.rglob("*") if file.is_file()]
    needed = contenders * (1.5 * sum(file.stat().st_size for file in files) + 1e9)
    import torch

    free = free_memory(torch.device("cpu"))
    return free is not None and needed > free
