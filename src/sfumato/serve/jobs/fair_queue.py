"""Whose picture is next: callers in turn; of one caller the job of the highest priority, then the oldest.

Nothing here waits, reads a clock or knows a worker: jobs go in, the next picture comes out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from sfumato.serve.jobs.job_record import Job

LONG = 8
"""Pictures after which a job lets another one of its caller go between."""


@dataclass(slots=True)
class Waiting:
    """A job with pictures still to be made, the next one's number first."""

    job: Job
    missing: deque[int]
    taken: int = 0
    """Pictures of it handed out since it came here."""


@dataclass(slots=True)
class FairQueue:
    """The jobs that have pictures to be made, and who had the last turns."""

    _waiting: dict[str, Waiting] = field(default_factory=dict)
    _turns: dict[str, int] = field(default_factory=dict)
    """Caller → when it had its last turn; who had none comes first."""
    _last_job: dict[str, str] = field(default_factory=dict)
    _turn: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Job, missing: Iterable[int]) -> None:
        """Put a job in its place; it is the job's age that counts, not when it came here."""
        self._waiting[job.id] = Waiting(job=job, missing=deque(missing))

    def remove(self, job_id: str) -> None:
        """Take a job out, if it is there."""
        self._waiting.pop(job_id, None)

    def give_back(self, job: Job, number: int) -> None:
        """Put a picture that was taken, but not made, before the others of its job."""
        if job.id in self._waiting:
            self._waiting[job.id].missing.appendleft(number)
        else:
            self.add(job, [number])

    def count(self, caller: str | None = None, *, but: Collection[str] = ()) -> int:
        """Jobs here (of one caller), those of the ids in `but` left out."""
        return sum(
            (caller is None or entry.job.caller == caller) and job_id not in but
            for job_id, entry in self._waiting.items()
        )

    def take(self) -> tuple[Job, int] | None:
        """The next picture's job and number; the turn is its caller's."""
        callers = self._by_caller()
        if not callers:
            return None
        caller = min(callers, key=lambda name: self._rank(name, callers[name], self._turns))
        first, *others = callers[caller]
        if first.taken >= LONG and self._last_job.get(caller) == first.job.id:
            first = next((entry for entry in others if entry.job.priority == first.job.priority), first)
        job, number = first.job, first.missing.popleft()
        first.taken += 1
        self._turn += 1
        self._turns[caller] = self._turn
        self._last_job[caller] = job.id
        if not first.missing:
            self.remove(job.id)
        return job, number

    def order(self) -> list[Waiting]:
        """The jobs in the order in which they will have their next picture, if none is added."""
        callers, turns, turn, ordered = self._by_caller(), dict(self._turns), self._turn, []
        while callers:
            caller = min(callers, key=lambda name: self._rank(name, callers[name], turns))
            ordered.append(callers[caller].popleft())
            turn += 1
            turns[caller] = turn
            if not callers[caller]:
                del callers[caller]
        return ordered

    def _by_caller(self) -> dict[str, deque[Waiting]]:
        """Each caller's jobs, the first to be served first."""
        callers: dict[str, deque[Waiting]] = {}
        for entry in sorted(
            self._waiting.values(), key=lambda entry: (-entry.job.priority, entry.job.created, entry.job.id)
        ):
            callers.setdefault(entry.job.caller, deque()).append(entry)
        return callers

    @staticmethod
    def _rank(caller: str, waiting: Iterable[Waiting], turns: Mapping[str, int]) -> tuple[int, float]:
        """Who had the last turn longest ago is next; among those who had none, who has waited longest."""
        return turns.get(caller, 0), min(entry.job.created for entry in waiting)
