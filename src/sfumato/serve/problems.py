"""Errors as replies: RFC 9457 `application/problem+json`, one line each, naming the field where there is one."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from sfumato.errors import InvalidRequest, OutputError, SfumatoError
from sfumato.pipeline.field_text import FIELDS


class Refused(SfumatoError):
    """The server won't do that, now or at all: `status` and `code` are for programs, the message is for people."""

    def __init__(
        self, status: int, code: str, message: str, *, field: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.retry_after = retry_after


class ProblemResponse(JSONResponse):
    """A reply that says what was wrong."""

    media_type = "application/problem+json"


def problem(
    status: int, code: str, detail: str, *, request_id: str, field: str | None = None, retry_after: int | None = None
) -> ProblemResponse:
    """The reply for one error. `code` is what programs go by, `field` the part of the body at fault."""
    body = {
        "type": f"urn:sfumato:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": " ".join(detail.split()),
        **({"field": field} if field else {}),
        "request_id": request_id,
    }
    return ProblemResponse(body, status, {"Retry-After": str(retry_after)} if retry_after is not None else None)


def answer_errors(app: FastAPI) -> None:
    """Make `app` answer every error it raises as a problem."""
    app.add_exception_handler(SfumatoError, _own)
    app.add_exception_handler(RequestValidationError, _invalid_body)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def refusal(error: SfumatoError) -> Refused:
    """What a typed error is over HTTP."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, InvalidRequest):
        return Refused(422, "invalid-request", str(error), field=error.field or _named_field(str(error)))
    if isinstance(error, OutputError):
        return Refused(503, "storage", "the server can't write what it was asked to keep", retry_after=60)
    return Refused(500, "failed", str(error))


def _named_field(message: str) -> str | None:
    """The field a message begins with, or names first in quotes: not every error carries it beside the message."""
    named = re.match(r"(?:a request has no field |a request needs a )?'?(\w+)", message)
    return named[1] if named and (named[1] in FIELDS or "no field" in message) else None


async def _own(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, SfumatoError)
    refused = refusal(error)
    return problem(
        refused.status,
        refused.code,
        str(refused),
        request_id=request_id(request),
        field=refused.field,
        retry_after=refused.retry_after,
    )


async def _invalid_body(request: HttpRequest, error: Exception) -> Response:
    """What pydantic refused: the first fault, named by its path in the body. The value isn't repeated: it may be
    long, and none of the log's business."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    if first["type"] == "json_invalid":
        return problem(400, "not-json", "the body is not JSON", request_id=request_id(request))
    field = ".".join(path) or "body"
    return problem(422, "invalid-request", f"{field}: {first['msg']}", request_id=request_id(request), field=field)


async def _http(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    reply = problem(error.status_code, code, _SAID.get(error.status_code, error.detail), request_id=request_id(request))
    reply.headers.update(error.headers or {})
    return reply


_SAID = {
    404: "there is nothing of that name here",
    405: "that can't be done here: see /openapi.json for what can",
    413: "the body is larger than the server takes",
}


async def _unexpected(request: HttpRequest, error: Exception) -> Response:
    return problem(
        500, "unexpected", "something unexpected went wrong; the log says what", request_id=request_id(request)
    )


def request_id(request: HttpRequest) -> str:
    """The name under which the log has this request."""
    return str(request.scope.get("state", {}).get("request_id", ""))
