"""Where jobs are accepted, shown, cancelled and deleted: what a caller may do with them, whatever the route."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sfumato.errors import OutputError
from sfumato.pipeline.request import Request
from sfumato.serve.jobs.event_bus import EventBus
from sfumato.serve.jobs.fair_queue import FairQueue
from sfumato.serve.jobs.job_files import Ending, JobFiles
from sfumato.serve.jobs.job_record import ENDED, Event, Job, new_id
from sfumato.serve.jobs.store import Store
from sfumato.serve.jobs.waiting_time import Estimate
from sfumato.serve.observe.server_metrics import ServerMetrics
from sfumato.serve.problems import Refused
from sfumato.serve.server_settings import EVENTS_KEPT, ServerSettings
from sfumato.serve.workers.messages import Unit

_Given = ParamSpec("_Given")
_Done = TypeVar("_Done")

_LEAST_FREE, _LEAST_SHARE = 500e6, 0.01  # bytes, and part of the disk: below the larger, no job is taken
_LONGEST_WAIT = 60  # seconds that Retry-After says at most: clients' libraries ignore longer ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a caller asks for, checked. `body_sha256` tells a repeated body from another one."""

    request: Request
    count: int
    priority: int
    body_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """The picture that is being made."""

    job: Job
    number: int
    unit: Unit
    since: float


async def _not_working(_: UnderWay) -> None:
    """What stops a picture while nobody makes any."""


class JobDesk:
    """All jobs of one server. Used on the event loop; whatever blocks goes to threads, whatever writes to one."""

    def __init__(self, settings: ServerSettings, store: Store, files: JobFiles, metrics: ServerMetrics) -> None:
        self.settings = settings
        self.store = store
        self.files = files
        self.metrics = metrics
        self.bus = EventBus()
        self.queue = FairQueue()
        self.estimate = Estimate()
        self.changed = asyncio.Event()
        self.under_way: UnderWay | None = None
        self.is_draining = False
        self.stop_picture: Callable[[UnderWay], Awaitable[None]] = _not_working
        self._arriving: Counter[str] = Counter()
        self._keys_arriving: set[tuple[str, str]] = set()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sfumato-store")

    def open(self) -> None:
        """Take up the jobs that wait, and tell from now on what happens."""
        loop = asyncio.get_running_loop()

        def tell(events: Sequence[Event]) -> None:
            loop.call_soon_threadsafe(self._tell, events)

        self.store.tell = tell
        for job in self.store.unfinished():
            made = {picture.number for picture in self.store.pictures_of_job(job.id)}
            self.queue.add(job, [number for number in range(job.count) if number not in made])

    async def write(self, call: Callable[_Given, _Done], *given: _Given.args, **named: _Given.kwargs) -> _Done:
        """Call what writes, in the one thread that does, after what was asked before."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, lambda: call(*given, **named))

    async def accept(self, asked: Submission, *, caller: str, key: str | None) -> tuple[Job, bool]:
        """Put a job on disk and in the queue; with a key that was used before, that job, and True.

        Raises `Refused`: too many wait, the server is stopping, the disk is full, the key is another job's.
        """
        if key is None:
            return await self._accept_new(asked, caller, None), False
        if (caller, key) in self._keys_arriving:
            raise Refused(409, "in-progress", "the first request with this key is still being accepted", retry_after=1)
        self._keys_arriving.add((caller, key))
        try:
            known = await asyncio.to_thread(self.store.job_with_key, caller, key, time.time() - EVENTS_KEPT)
            if known is None:
                return await self._accept_new(asked, caller, key), False
            if known.body_sha256 != asked.body_sha256:
                raise Refused(422, "key-reused", "this key was used with another body", field="Idempotency-Key")
            return known, True
        finally:
            self._keys_arriving.discard((caller, key))

    async def _accept_new(self, asked: Submission, caller: str, key: str | None) -> Job:
        self._check_room(caller)
        job = Job(
            id=new_id(),
            caller=caller,
            created=time.time(),
            request=asked.request,
            count=asked.count,
            priority=asked.priority,
            idempotency_key=key,
            body_sha256=asked.body_sha256,
        )
        self._arriving[caller] += 1
        try:
            await self.write(self._keep, job)
        finally:
            self._arriving[caller] -= 1
        self.queue.add(job, range(job.count))
        self.note_change()
        return job

    def _keep(self, job: Job) -> None:
        try:
            self.files.promise(job)
            self.store.add(job)
        except OutputError:
            self.files.delete(job.id)
            raise

    def _check_room(self, caller: str) -> None:
        if self.is_draining:
            raise Refused(503, "stopping", "the server is stopping: try again in a moment", retry_after=5)
        usage = shutil.disk_usage(Path(self.settings.folder))
        if usage.free < max(_LEAST_FREE, _LEAST_SHARE * usage.total):
            raise Refused(503, "storage-full", "the server's disk is nearly full: no new jobs", retry_after=60)
        waiting = self.queue.count(but=self._running) + self._arriving.total()
        own = self.queue.count(caller, but=self._running) + self._arriving[caller]
        if waiting >= self.settings.max_waiting or own >= self.settings.waiting_each:
            raise Refused(
                429, "queue-full", f"{waiting} jobs wait already: try again later", retry_after=self._retry_after()
            )

    def _retry_after(self) -> int:
        """Seconds until a place will be free: as long as a job takes, and not the same for all who ask."""
        seconds = [entry.job.count * self.estimate.picture(entry.job.request) for entry in self.queue.order()]
        mean = sum(seconds) / max(len(seconds), 1)
        return max(1, min(_LONGEST_WAIT, round(mean * random.uniform(0.8, 1.2))))

    async def find(self, job_id: str, caller: str) -> Job:
        """A caller's own job. Raises `Refused` (404) for others', as for none."""
        job = await asyncio.to_thread(self.store.job, job_id)
        if job is None or job.caller != caller:
            raise Refused(404, "not-found", "there is no such job")
        return job

    async def cancel(self, job: Job) -> Job:
        """Stop a job, whatever it is about; the job as it is then. One that has ended stays as it is."""
        if job.state in ENDED:
            return job
        self.queue.remove(job.id)
        if self.under_way is not None and self.under_way.job.id == job.id:
            await self.stop_picture(self.under_way)
        return await self.end(job, Ending(state="cancelled"))

    async def end(self, job: Job, ending: Ending) -> Job:
        """Take a job out of the queue, and record how it ended."""
        self.queue.remove(job.id)
        ended = await self.write(self._end, job, ending)
        self.note_change()
        return ended

    def _end(self, job: Job, ending: Ending) -> Job:
        now = self.store.job(job.id)
        if now is None or now.state in ENDED:
            return now or job
        made = tuple(picture.number for picture in self.store.pictures_of_job(job.id))
        self.files.end(job, replace(ending, made=made))
        return self.store.end(job, ending)

    async def delete(self, job: Job) -> None:
        """Delete a job that has ended, its pictures and what was told of it. Raises `Refused` while it hasn't."""
        if job.state not in ENDED:
            raise Refused(409, "not-ended", "the job hasn't ended: cancel it first")
        await self.write(self._delete, job)

    def _delete(self, job: Job) -> None:
        self.files.delete(job.id)
        self.store.delete(job)

    def outlook(self) -> dict[str, tuple[int, float]]:
        """For each job with pictures to be made: jobs that begin before it, and seconds until its turn."""
        place, seconds, found = 0, 0.0, {}
        for entry in self.queue.order():
            found[entry.job.id] = place, seconds
            place += entry.job.id not in self._running
            seconds += len(entry.missing) * self.estimate.picture(entry.job.request)
        return found

    @property
    def _running(self) -> frozenset[str]:
        return frozenset([self.under_way.job.id] if self.under_way else [])

    def note_change(self) -> None:
        """Wake whoever waits for work, and tell the waiting jobs their places."""
        self.changed.set()
        self.metrics.waiting.set(self.queue.count(but=self._running))
        if len(self.bus):
            waiting = [entry.job for entry in self.queue.order() if entry.job.id not in self._running]
            for place, job in enumerate(waiting):
                self.tell_passing("place", job, place=place)

    def tell_passing(self, kind: str, job: Job, **data: Any) -> None:
        """Tell those who listen now something nobody keeps."""
        self.bus.publish([Event(kind=kind, caller=job.caller, job_id=job.id, data=data)])

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            self.metrics.jobs.labels(event.kind).inc()
        self.bus.publish(events)

    def close(self) -> None:
        """Let go of the files, once what is being written has been."""
        self._writer.shutdown()
        self.store.close()
