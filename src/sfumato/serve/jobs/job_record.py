"""`Job`: what a caller was promised, its states, its pictures and the events that tell of it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from sfumato.errors import InvalidRequest
from sfumato.pipeline.request import Request, counted

State = Literal["queued", "running", "finished", "failed", "cancelled"]
ENDED: frozenset[State] = frozenset({"finished", "failed", "cancelled"})

Kind = Literal["queued", "started", "picture", "finished", "failed", "cancelled", "deleted"]

_VERSION = 1  # of job.json


def new_id(now: float | None = None) -> str:
    """An id nobody can guess; those made later sort behind."""
    milliseconds = int((time.time() if now is None else now) * 1000)
    return f"{milliseconds:011x}{secrets.token_hex(8)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What was accepted: pictures 0 to `count` - 1 of `request`, each on its seed + i.

    `created`, `started` and `ended` are seconds since 1970. `body_sha256` is of the body it came in, to tell a repeated
    `idempotency_key` from a reused one. `error` is the one line for people, `error_code` the word for programs.
    """

    id: str
    caller: str
    created: float
    request: Request
    count: int
    priority: int = 0
    idempotency_key: str | None = None
    body_sha256: str | None = None
    state: State = "queued"
    started: float | None = None
    ended: float | None = None
    error: str | None = None
    error_code: str | None = None

    def requests(self) -> list[Request]:
        """The request of each picture."""
        return counted([self.request], self.count)

    def to_json(self) -> str:
        """What `job.json` holds: the promise, not how far it is."""
        return json.dumps(
            {
                "version": _VERSION,
                "id": self.id,
                "caller": self.caller,
                "created": self.created,
                "count": self.count,
                "priority": self.priority,
                "idempotency_key": self.idempotency_key,
                "body_sha256": self.body_sha256,
                "request": self.request.to_dict(),
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`. Raises `InvalidRequest` for what no job of this version wrote."""
        try:
            values = json.loads(text)
            if values.pop("version") != _VERSION:
                raise InvalidRequest("the job is of another version of sfumato")
            return cls(**(values | {"request": Request.from_dict(values["request"])}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRequest(f"not a job: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MadePicture:
    """A finished picture of a job: number `number` of it; `sha256` and `size` are of the file's bytes."""

    id: str
    job_id: str
    number: int
    created: float
    seed: int
    width: int
    height: int
    sha256: str
    size: int


def picture_id(job_id: str, number: int) -> str:
    """The id of a picture follows from its job: the same picture can't be recorded twice."""
    return f"{job_id}_{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job. `id` rises over all events, and is None for those that nobody keeps."""

    kind: str
    caller: str
    job_id: str
    data: Mapping[str, Any]
    id: int | None = None
