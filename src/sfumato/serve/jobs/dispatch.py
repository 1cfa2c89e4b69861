"""From the queue to the worker and onto the disk: one picture after another, each recorded when it is whole."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from functools import partial
from pathlib import Path

from sfumato.errors import Cancelled, OutputError
from sfumato.serve.jobs.job_desk import JobDesk, UnderWay
from sfumato.serve.jobs.job_files import Ending, described
from sfumato.serve.jobs.job_record import ENDED, Job, MadePicture, picture_id
from sfumato.serve.observe.request_log import logger
from sfumato.serve.server_settings import EVENTS_KEPT, GRACE
from sfumato.serve.workers.messages import Message, Unit
from sfumato.serve.workers.worker_host import UnitFailed, WorkerHost, WorkerLost

_DEATHS = 3  # of workers on one picture, before it is the picture's fault
_LIMIT, _LIMIT_FACTOR = 600.0, 4  # seconds, and times the estimate: a picture may take the longer
_PAUSE = 5.0  # seconds until the next try on a disk that was full
_CLEANING = 3600.0  # seconds between two cleanings of old events


class Dispatcher:
    """The one that takes pictures from the queue while the server runs."""

    def __init__(self, desk: JobDesk, host: WorkerHost) -> None:
        self._desk = desk
        self._host = host
        self._deaths: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

        async def stop_picture(now: UnderWay) -> None:
            await host.cancel(now.unit.name)

        desk.stop_picture = stop_picture

    @property
    def is_ready(self) -> bool:
        """Whether pictures are being made, or would be."""
        return self._host.is_ready and not self._desk.is_draining

    def start(self) -> None:
        """Begin to work, in the background."""
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._clean())]

    async def drain(self, grace: float = GRACE) -> None:
        """Take nothing more. A picture that will be done within `grace` seconds is finished; another one is given up,
        and made anew when the server starts again."""
        self._desk.is_draining = True
        self._desk.changed.set()
        if not self._tasks:
            return
        work, cleaning = self._tasks
        cleaning.cancel()
        if (now := self._desk.under_way) is not None:
            left = self._desk.estimate.picture(now.unit.request) - (time.monotonic() - now.since)
            if left > grace:
                await self._host.cancel(now.unit.name)
            await asyncio.wait({work}, timeout=grace)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        await self._host.stop()

    async def _run(self) -> None:
        await self._host.start()
        while not self._desk.is_draining:
            self._desk.changed.clear()
            taken = self._desk.queue.take()
            if taken is None:
                await self._desk.changed.wait()
                continue
            job, number = taken
            try:
                await self._make(job, number)
            except OutputError as error:
                if await self._is_wanted(job):  # else its folder may be gone
                    logger.warning("can't write, will try again", job=job.id, reason=str(error))
                    self._desk.queue.give_back(job, number)
                    await asyncio.sleep(_PAUSE)
            except Exception:
                logger.exception("unexpected", job=job.id)
                with contextlib.suppress(OutputError):
                    await self._desk.end(
                        job, Ending(state="failed", error="something unexpected went wrong", error_code="unexpected")
                    )
            finally:
                self._desk.under_way = None
                self._desk.note_change()

    async def _make(self, job: Job, number: int) -> None:
        request = job.requests()[number]
        path = self._desk.files.picture(job.id, number)
        unit = Unit(name=picture_id(job.id, number), request=request, path=path)
        began = time.monotonic()
        self._desk.under_way = UnderWay(job=job, number=number, unit=unit, since=began)
        if not await self._desk.write(self._desk.store.start, job):
            return
        self._desk.note_change()
        picture = await asyncio.to_thread(self._desk.files.made, job, number, request)  # made, and not yet recorded
        if picture is None:
            limit = max(_LIMIT, _LIMIT_FACTOR * self._desk.estimate.picture(request))
            try:
                async with asyncio.timeout(limit):
                    width, height = await self._host.generate(unit, partial(self._tell, job, number, began))
            except Cancelled:
                self._desk.metrics.units.labels("cancelled").inc()
                return
            except TimeoutError:
                await self._fail(job, "too_long", f"the picture took more than {limit:.0f} s")
                return
            except WorkerLost as error:
                await self._lost(job, number, unit, error)
                return
            except UnitFailed as error:
                if error.code == OutputError.__name__:
                    raise OutputError(str(error)) from error
                await self._fail(job, error.code, str(error))
                return
            seconds = time.monotonic() - began
            self._deaths.pop(unit.name, None)
            self._desk.estimate.learn(request, seconds)
            self._desk.metrics.seconds.observe(seconds)
            picture = await asyncio.to_thread(
                described, path, job, number, seed=request.seed, width=width, height=height
            )
        await self._desk.write(self._record, job, picture, path)

    def _record(self, job: Job, picture: MadePicture, path: Path) -> None:
        if self._desk.store.add_picture(job, picture):
            self._desk.metrics.units.labels("made").inc()
        else:  # the job was cancelled when the picture was all but done
            path.unlink(missing_ok=True)

    async def _fail(self, job: Job, code: str, reason: str) -> None:
        self._desk.metrics.units.labels("failed").inc()
        logger.warning("picture failed", job=job.id, code=code)
        await self._desk.end(job, Ending(state="failed", error=reason, error_code=code))

    async def _lost(self, job: Job, number: int, unit: Unit, error: WorkerLost) -> None:
        """Try again with a new worker, but not for ever."""
        self._desk.metrics.units.labels("lost").inc()
        logger.warning("worker lost", job=job.id, reason=str(error))
        self._deaths[unit.name] += 1
        if self._deaths[unit.name] >= _DEATHS:
            await self._fail(job, "worker_lost", str(error))
        elif await self._is_wanted(job):
            self._desk.queue.give_back(job, number)

    async def _is_wanted(self, job: Job) -> bool:
        """Whether the job is still there and hasn't ended."""
        now = await asyncio.to_thread(self._desk.store.job, job.id)
        return now is not None and now.state not in ENDED

    def _tell(self, job: Job, number: int, began: float, message: Message) -> None:
        if message["is"] == "preview":
            self._desk.tell_passing("preview", job, picture=number, webp=message["webp"])
        elif message["is"] == "progress":
            step, steps = message["step"], message["steps"]
            left = (time.monotonic() - began) / max(step, 1) * (steps - step)
            self._desk.tell_passing(
                "progress", job, picture=number, step=step, steps=steps, seconds_left=round(left, 1)
            )

    async def _clean(self) -> None:
        while True:
            await self._desk.write(self._desk.store.forget_events, time.time() - EVENTS_KEPT)
            await asyncio.sleep(_CLEANING)
