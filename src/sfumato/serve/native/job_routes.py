"""`/api/jobs`: hand in, look at, cancel, delete; and their pictures below `/api/pictures`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from sfumato.errors import InvalidRequest
from sfumato.serve.jobs.job_desk import JobDesk
from sfumato.serve.jobs.job_record import ENDED, Job, MadePicture, State
from sfumato.serve.jobs.store import picture_row
from sfumato.serve.native.submission import read_submission
from sfumato.serve.observe.request_log import logger
from sfumato.serve.problems import Refused

router = APIRouter(prefix="/api")

_MAX_KEY = 255
_PICTURES_KEPT = "private, max-age=31536000, immutable"


def desk_of(request: Request) -> JobDesk:
    """The server's jobs."""
    desk: JobDesk = request.app.state.desk
    return desk


def caller_of(request: Request) -> str:
    """Who asks, as the key said."""
    return str(request.state.caller)


def idempotency_key(header: Annotated[str | None, Header(alias="Idempotency-Key")] = None) -> str | None:
    """The caller's own name for the job, if it was given one. Raises `InvalidRequest`."""
    if header is not None and not (0 < len(header) <= _MAX_KEY and header.isascii() and header.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {_MAX_KEY} printable ASCII characters", field="Idempotency-Key"
        )
    return header


Desk = Annotated[JobDesk, Depends(desk_of)]
Caller = Annotated[str, Depends(caller_of)]
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(pattern="^[a-z0-9]{1,40}(_[0-9]{1,6})?$")]


@router.post("/jobs", status_code=202)
async def post_job(
    body: Annotated[dict[str, Any], Body()],
    key: Annotated[str | None, Depends(idempotency_key)],
    desk: Desk,
    caller: Caller,
) -> JSONResponse:
    """Hand in a job: `{request: {prompt, …}, count, priority}`, or a picture's own request. 202 when it is on disk."""
    submission = read_submission(body, desk.settings)
    job, replayed = await desk.accept(submission, caller=caller, key=key)
    if desk.settings.log_prompts and not replayed:
        logger.info("prompt", job=job.id, prompt=job.request.prompt)
    headers = {"Location": f"/api/jobs/{job.id}", "Sfumato-Job": job.id, "Sfumato-Seed": str(job.request.seed)}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return JSONResponse(await described_job(desk, job), 200 if replayed else 202, headers)


@router.get("/jobs")
async def list_jobs(
    desk: Desk, caller: Caller, state: State | None = None, cursor: Cursor = None, limit: Limit = 50
) -> dict[str, Any]:
    """The caller's jobs, newest first; `next` is the cursor of the page behind."""
    jobs = await asyncio.to_thread(desk.store.jobs_of, caller, state=state, before=cursor, limit=limit)
    return {"jobs": [_job(job) for job in jobs], "next": jobs[-1].id if len(jobs) == limit else None}


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, desk: Desk, caller: Caller) -> dict[str, Any]:
    """A job with its pictures."""
    return await described_job(desk, await desk.find(job_id, caller))


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, desk: Desk, caller: Caller) -> dict[str, Any]:
    """Stop a job. Its finished pictures stay. A job that has ended stays as it is."""
    return await described_job(desk, await desk.cancel(await desk.find(job_id, caller)))


@router.delete("/jobs/{job_id}", status_code=204)
async def delete_job(job_id: str, desk: Desk, caller: Caller) -> Response:
    """Delete a job that has ended, and its pictures."""
    await desk.delete(await desk.find(job_id, caller))
    return Response(status_code=204)


@router.get("/pictures")
async def list_pictures(desk: Desk, caller: Caller, cursor: Cursor = None, limit: Limit = 60) -> dict[str, Any]:
    """The caller's pictures, newest job first; `next` is the cursor of the page behind."""
    if cursor is not None and "_" not in cursor:
        raise InvalidRequest("cursor is of another list: take the one this list gave", field="cursor")
    made = await asyncio.to_thread(desk.store.pictures_of, caller, before=cursor, limit=limit)
    return {"pictures": _pictures(made), "next": made[-1].id if len(made) == limit else None}


@router.get("/pictures/{picture_id}")
async def get_picture(picture_id: str, desk: Desk, caller: Caller) -> dict[str, Any]:
    """What is known of a picture."""
    return _pictures([await _found(picture_id, desk, caller)])[0]


@router.get("/pictures/{picture_id}/full", response_class=FileResponse)
async def get_picture_file(
    picture_id: str,
    desk: Desk,
    caller: Caller,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The picture itself, a PNG with its record."""
    picture = await _found(picture_id, desk, caller)
    etag = f'"{picture.sha256}"'
    headers = {"ETag": etag, "Cache-Control": _PICTURES_KEPT}
    if if_none_match is not None and etag in if_none_match:
        return Response(status_code=304, headers=headers)
    path = desk.files.picture(picture.job_id, picture.number)
    if not await asyncio.to_thread(path.is_file):
        raise Refused(404, "not-found", "the picture's file is gone")
    return FileResponse(
        path,
        headers=headers,
        media_type="image/png",
        filename=f"{picture.id}.png",
        content_disposition_type="inline",
    )


async def _found(picture_id: str, desk: JobDesk, caller: str) -> MadePicture:
    picture = await asyncio.to_thread(desk.store.picture, caller, picture_id)
    if picture is None:
        raise Refused(404, "not-found", "there is no such picture")
    return picture


async def described_job(desk: JobDesk, job: Job) -> dict[str, Any]:
    """A job as callers see it, with its pictures, its place and the time left."""
    made = await asyncio.to_thread(desk.store.pictures_of_job, job.id)
    place, wait = desk.outlook().get(job.id, (None, 0.0))
    left = (job.count - len(made)) * desk.estimate.picture(job.request)
    return {
        **_job(job),
        "place": place if job.state == "queued" else None,
        "seconds_left": None if job.state in ENDED else round(wait + left, 1),
        "pictures": _pictures(made),
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "count": job.count,
        "priority": job.priority,
        "request": job.request.to_dict(),
        "error": {"code": job.error_code, "detail": job.error} if job.error_code else None,
    }


def _pictures(made: Iterable[MadePicture]) -> list[dict[str, Any]]:
    return [picture_row(picture) | {"url": f"/api/pictures/{picture.id}/full"} for picture in made]
