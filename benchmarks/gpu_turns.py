"""Contenders on one GPU against the clock: they load side by side, and are timed alone and in turn.

Those that compile wait with their weights loaded until the others have been timed, and then compile side by side.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.bench.bench_plan import Plan
from sfumato.bench.contender_processes import ContenderFailed, Worker, worker
from sfumato.bench.contenders import Contender
from sfumato.bench.measure import Results, Row, compare
from sfumato.bench.worker import MACHINE

_CALM = 0.3  # seconds between turns, as in `measure`
_SPARE = 20.0  # seconds left to time those that have compiled
_WORTH = 60.0  # seconds left from which compiling for another batch is begun
_PATIENCE = 120.0  # for loading or a turn, where the time isn't over sooner


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """What is measured: `one` picture at a time, and `many`, whose batch is the only difference.

    `compiled` are the names of those that compile. `until` is on `time.monotonic`'s clock. `save` is called after every
    turn, `meanwhile` once, with the seconds there are for it, while those that compile do and nobody is timed.
    """

    one: Plan
    many: Plan
    contenders: Sequence[Contender]
    compiled: frozenset[str]
    model: Path
    answers: Path
    until: float
    save: Callable[[Turns], None]
    say: Callable[[str], None]
    meanwhile: Callable[[float], None]
    rows: dict[str, Row] = field(default_factory=dict)
    rows_of_many: dict[str, Row] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    gemm: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        """Measure. Whoever fails has a row that says why; nobody stops the others."""
        for contender in self.contenders:
            self.rows[contender.name] = Row(contender=contender, why_not=contender.missing())
            self.rows_of_many[contender.name] = Row(contender=contender, why_not=contender.missing())
        quick = [name for name in self._running() if name not in self.compiled]
        with contextlib.ExitStack() as everyone, ThreadPoolExecutor(len(self.contenders) + 1) as pool:
            self.say("loading all of them")
            loading = [pool.submit(self._load_machine, everyone)]
            loading += [pool.submit(self._load, name, everyone) for name in self._running()]
            for done in loading:
                done.result()
            self._save()
            self._timed(quick)
            self._timed_together([name for name in quick if name in self._running()])
            compiled = [name for name in self._running() if name in self.compiled]
            self.say(f"compiling: {', '.join(compiled) or 'nobody'}")
            compiling = [pool.submit(self._ready, name, self._left() - _SPARE) for name in compiled]
            self.meanwhile(self._left() - _SPARE)
            for done in compiling:
                done.result()
            self._save()
            self._timed(compiled)
            self._save()
            for name in compiled:
                if self._left() > _WORTH:
                    self._timed_together([name])
                elif not self.rows_of_many[name].seconds:
                    self.rows_of_many[name].why_not = "no time was left to compile for that batch"
            self._save()

    def results(self) -> tuple[Results, Results]:
        """What is known by now, of one picture and of many at a time."""
        facts = dict(self.machine)
        operations = facts.pop("operations", {"step": 0, "decode": 0})
        one, many = (
            Results(
                plan=plan, machine=facts, operations=operations, gemm=self.gemm, rows=list(rows.values()), fresh=False
            )
            for plan, rows in ((self.one, self.rows), (self.many, self.rows_of_many))
        )
        return one, many

    def _save(self) -> None:
        compare(list(self.rows.values()), self.answers)
        self.save(self)

    def _running(self) -> list[str]:
        return [name for name, row in self.rows.items() if not row.why_not and not row.ended]

    def _left(self) -> float:
        return self.until - time.monotonic()

    def _ask(self, name: str, do: str, argument: object, patience: float | None = None) -> dict[str, Any]:
        left = min(self._left(), _PATIENCE) if patience is None else patience
        if left <= 0:
            raise ContenderFailed("the time was over before its turn")
        return self.workers[name].ask(do, argument, patience=left)

    def _load_machine(self, everyone: contextlib.ExitStack) -> None:
        """Without it only shares of the peak are missing."""
        try:
            opened = worker(
                MACHINE, self.one, self.model, self.answers / MACHINE, patience=min(self._left(), _PATIENCE)
            )
            self.workers[MACHINE] = everyone.enter_context(opened)
        except ContenderFailed as error:
            self.machine["failed"] = str(error)
            return
        self.machine.update(self.workers[MACHINE].first)

    def _load(self, name: str, everyone: contextlib.ExitStack) -> None:
        row, answer = self.rows[name], self.answers / f"{name}.npy"
        patience = min(self._left(), _PATIENCE)
        try:
            opened = worker(name, self.one, self.model, answer, patience=patience, stepped=False)
            self.workers[name] = everyone.enter_context(opened)
            row.note_load(self.workers[name].first)
            if row.contender.kind == "engine" and row.runs != name:
                raise ContenderFailed(f"{row.runs} runs in its place here")
        except ContenderFailed as error:
            self._failed(name, error)
            return
        if name not in self.compiled:
            self._ready(name, min(self._left(), _PATIENCE))

    def _ready(self, name: str, patience: float) -> None:
        """Whatever is compiled, recorded or read on the way to the first answers, untimed but for the first step."""
        until = time.monotonic() + patience
        try:
            self.rows[name].note_first_step(self._ask(name, "first", None, until - time.monotonic()))
            for what in ("step", "image"):
                self._ask(name, what, 1, until - time.monotonic())
        except ContenderFailed as error:
            self._failed(name, error)

    def _failed(self, name: str, error: ContenderFailed) -> None:
        self.say(f"{name}: {error}")
        self.rows[name].note_failure(error, self.one.what)
        if not self.rows_of_many[name].seconds:
            self.rows_of_many[name].note_failure(error, self.many.what)

    def _timed(self, names: Sequence[str]) -> None:
        """Every round of one picture at a time."""
        for number in range(self.one.rounds):
            for name in (name for name in names if name in self._running()):
                self.say(f"round {number + 1} of {self.one.rounds}: {name}")
                row = self.rows[name]
                try:
                    row.note("step", self._ask(name, "step", self.one.steps))
                    row.note("image", self._ask(name, "image", self.one.image_steps))
                except ContenderFailed as error:
                    self._failed(name, error)
                self._measure_peak(row.dtype)
                self._save()

    def _timed_together(self, names: Sequence[str]) -> None:
        """Every round of many pictures at a time, one contender after the other: each keeps much memory after it."""
        for name in names:
            row, together = self.rows[name], self.rows_of_many[name]
            together.runs, together.dtype = row.runs, row.dtype
            self.say(f"{self.many.batch} pictures at a time: {name}")
            try:
                for _ in range(self.many.rounds):
                    together.note("image", self._ask(name, "images", (self.many.image_steps, self.many.batch)))
            except ContenderFailed as error:
                together.note_failure(error, self.many.what)
                row.ended = str(error)
            self._save()

    def _measure_peak(self, dtype: str) -> None:
        time.sleep(_CALM)
        with contextlib.suppress(ContenderFailed, KeyError):
            found = self._ask(MACHINE, "gemm", dtype)["gflops"]
            self.gemm[dtype] = max(found, self.gemm.get(dtype, 0.0))
