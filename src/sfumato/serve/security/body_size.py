"""Bodies that say themselves that they are too large: refused before a byte is read, as every other error is.

FastAPI counts the bytes of those that don't say; of those that do it would answer in plain text.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sfumato.serve.problems import problem


class BodySize:
    """ASGI middleware that answers 413 where `Content-Length` is above `limit` bytes, and 400 where it is no number."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = Headers(scope=scope).get("content-length", "0") if scope["type"] == "http" else "0"
        if declared.isdecimal() and int(declared[:20]) <= self._limit:
            await self._app(scope, receive, send)
            return
        status, code = (413, "too-large") if declared.isdecimal() else (400, "bad-request")
        said = f"a body of {declared[:20]} bytes: at most {self._limit} are taken"
        await problem(status, code, said, request_id=scope.get("state", {}).get("request_id", ""))(scope, receive, send)
