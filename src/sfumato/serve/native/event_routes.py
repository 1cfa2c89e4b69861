"""`/api/events`, `/api/jobs/{id}/events`: server-sent events that go on where a connection broke off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from sfumato.serve.jobs.job_desk import JobDesk
from sfumato.serve.jobs.job_record import ENDED, Event, Job
from sfumato.serve.native.job_routes import Caller, Desk, described_job

router = APIRouter(prefix="/api")

_QUIET = 15.0  # seconds, then a ping keeps proxies from closing the connection
_UNFINISHED = 200  # jobs a snapshot shows at most
_HEADERS = {"X-Accel-Buffering": "no"}
_PAGE = 1000
# FastAPI would take a route that says `EventSourceResponse` here for a generator of events; ours may also answer 204.
_SAID: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

After = Annotated[int | None, Query(ge=0)]
LastEventId = Annotated[int | None, Header(alias="Last-Event-ID", ge=0)]


@router.get("/events", response_class=Response, responses=_SAID)
async def all_events(
    desk: Desk, caller: Caller, after: After = None, last_event_id: LastEventId = None
) -> EventSourceResponse:
    """What happens to the caller's jobs. `Last-Event-ID`, or `after`, is the last event that was seen."""
    seen = last_event_id if last_event_id is not None else after
    return EventSourceResponse(_stream(desk, caller, None, seen), headers=_HEADERS)


@router.get("/jobs/{job_id}/events", response_class=Response, responses=_SAID)
async def job_events(
    job_id: str, desk: Desk, caller: Caller, after: After = None, last_event_id: LastEventId = None
) -> Response:
    """What happens to one job, until it ends. 204, which tells browsers to ask no more, once all of it was seen."""
    seen = last_event_id if last_event_id is not None else after
    job = await desk.find(job_id, caller)
    if job.state in ENDED and seen is not None:
        unseen = await asyncio.to_thread(desk.store.events_after, caller, seen, job_id=job.id, limit=1)
        if not unseen:
            return Response(status_code=204)
    return EventSourceResponse(_stream(desk, caller, job, seen), headers=_HEADERS)


async def _stream(desk: JobDesk, caller: str, job: Job | None, seen: int | None) -> AsyncIterator[bytes]:
    """A snapshot, what was told after the event `seen`, then what is told from now on.

    Listening begins before the past is read, so that nothing falls between; what was read is not told again.
    """
    job_id = job.id if job else None
    with desk.bus.subscribed(caller, job_id) as mailbox:
        desk.metrics.subscribers.set(len(desk.bus))
        try:
            forgotten, last = await asyncio.to_thread(desk.store.event_range)
            if seen is not None and not forgotten <= seen <= last:
                yield _encoded("reset", {"reason": "what came after that event is not kept any more"})
                seen = None
            snapshot = await _snapshot(desk, caller, job_id)
            yield _encoded("snapshot", snapshot, None if seen is not None else last)
            position = last if seen is None else seen
            while seen is not None:
                past = await asyncio.to_thread(desk.store.events_after, caller, position, job_id=job_id, limit=_PAGE)
                for event in past:
                    position = event.id or position
                    yield _event(event)
                if len(past) < _PAGE:
                    break
            if job_id is not None and _has_ended(snapshot):
                return
            async for news in mailbox.listen(quiet=_QUIET):
                if news is None:
                    yield KEEPALIVE_COMMENT
                elif news.id is None or news.id > position:
                    yield _event(news)
                    if job_id is not None and news.kind in (*ENDED, "deleted"):
                        return
            if desk.bus.closed:
                yield _encoded("bye", {})
        finally:
            desk.metrics.subscribers.set(len(desk.bus) - 1)


async def _snapshot(desk: JobDesk, caller: str, job_id: str | None) -> dict[str, Any]:
    if job_id is not None:
        job = await asyncio.to_thread(desk.store.job, job_id)
        return {"jobs": [await described_job(desk, job)] if job is not None else []}
    unfinished = [job for job in await asyncio.to_thread(desk.store.unfinished) if job.caller == caller]
    return {"jobs": [await described_job(desk, job) for job in unfinished[:_UNFINISHED]]}


def _has_ended(snapshot: dict[str, Any]) -> bool:
    return all(job["state"] in ENDED for job in snapshot["jobs"])


def _event(event: Event) -> bytes:
    return _encoded(event.kind, {"job": event.job_id, **event.data}, event.id)


def _encoded(kind: str, data: dict[str, Any], identity: int | None = None) -> bytes:
    return format_sse_event(data_str=json.dumps(data), event=kind, id=None if identity is None else str(identity))
