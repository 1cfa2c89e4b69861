"""One log line a request, with what is needed to find it again and nothing that is the caller's own business."""

from __future__ import annotations

import logging
import re
import secrets
import sys
import time
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfumato.serve.observe.server_metrics import ServerMetrics

logger: Any = structlog.get_logger("sfumato.serve")

_GIVEN_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def set_up_logs() -> None:
    """Lines for people on a terminal, JSON lines elsewhere; both on stderr."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class RequestLog:
    """ASGI middleware: gives each request its id (`x-request-id`), a log line, and a place in the metrics.

    A line has the route, not the path with what a caller wrote into it; no address, no header, no body.
    """

    def __init__(self, app: ASGIApp, *, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if _GIVEN_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = identity
        status, answered, started = 500, False, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                message = {**message, "headers": [*message["headers"], (b"x-request-id", identity.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            logger.exception("unexpected", request_id=identity)
            if not answered:
                raise
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "-")
            self._metrics.requests.labels(route, str(status)).inc()
            if route not in ("/livez", "/readyz", "/metrics"):
                logger.info(
                    "request",
                    request_id=identity,
                    method=scope["method"],
                    route=route,
                    status=status,
                    ms=round(seconds * 1000, 1),
                )
