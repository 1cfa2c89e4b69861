"""The HTTP application: routes put together, and what stands before them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp

from sfumato.serve.jobs.dispatch import Dispatcher
from sfumato.serve.jobs.job_desk import JobDesk
from sfumato.serve.native import event_routes, job_routes
from sfumato.serve.observe import health_routes
from sfumato.serve.observe.request_log import RequestLog
from sfumato.serve.problems import answer_errors
from sfumato.serve.security.api_keys import KeyCheck
from sfumato.serve.security.body_size import BodySize
from sfumato.serve.security.origin_check import OriginCheck
from sfumato.serve.security.response_headers import ResponseHeaders
from sfumato.serve.server_settings import MAX_BODY
from sfumato.version import __version__


def make_api(desk: JobDesk, dispatcher: Dispatcher) -> FastAPI:
    """The routes and their errors, without what stands before them. It works on the jobs while it is served."""

    @asynccontextmanager
    async def at_work(_: FastAPI) -> AsyncIterator[None]:
        desk.open()
        dispatcher.start()
        yield
        await dispatcher.drain(grace=0)
        desk.bus.close()
        desk.close()

    api = FastAPI(
        title="sfumato",
        version=__version__,
        lifespan=at_work,
        docs_url=None,  # the pages FastAPI has load scripts from elsewhere
        redoc_url=None,
        max_body_size=MAX_BODY,
        redirect_slashes=False,
    )
    api.state.desk, api.state.dispatcher, api.state.metrics = desk, dispatcher, desk.metrics
    for router in (health_routes.router, job_routes.router, event_routes.router):
        api.include_router(router)
    answer_errors(api)
    return api


def guarded(api: FastAPI, desk: JobDesk) -> ASGIApp:
    """`api` behind the checks. The outermost comes first: each request has an id before anything is said about it, and
    who asks is known before a body is read."""
    settings = desk.settings
    sized = BodySize(api, limit=MAX_BODY)
    keys = KeyCheck(sized, hashes=settings.keys, open_metrics=settings.is_loopback)
    origins = OriginCheck(
        keys,
        allow_hosts=settings.allow_hosts,
        public_url=settings.public_url,
    )
    return RequestLog(ResponseHeaders(origins), metrics=desk.metrics)
