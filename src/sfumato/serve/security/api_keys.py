"""API keys: who is asking, told from a secret, without saying anything about the secret."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sfumato.serve.problems import problem

LOCAL = "local"
"""The caller, where no keys are needed."""

_FREE_PATHS = frozenset({"/livez", "/readyz"})  # for whoever watches the process: they say nothing but "up"


def key_hash(key: str) -> str:
    """What is kept of a key. Keys are random and long, so that one round of SHA-256 is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


def caller_of(key: str, hashes: Sequence[str]) -> str | None:
    """The name of the caller with this key, or None. It takes the same time whichever key it is, or none."""
    given = key_hash(key)
    found = None
    for known in hashes:
        if hmac.compare_digest(given, known):
            found = known
    return f"key_{found[:16]}" if found else None


class KeyCheck:
    """ASGI middleware: names the caller in `scope["state"]["caller"]`, before the body is read, or answers 401.

    Without keys everyone is `LOCAL`.
    """

    def __init__(self, app: ASGIApp, *, hashes: Sequence[str], open_metrics: bool) -> None:
        self._app = app
        self._hashes = tuple(hashes)
        self._free = _FREE_PATHS | ({"/metrics"} if open_metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: str | None = LOCAL
        if scope["type"] == "http" and self._hashes and scope["path"] not in self._free:
            key = _given_key(Headers(scope=scope).get("authorization", ""))
            caller = caller_of(key, self._hashes)
            if caller is None:
                said = "that key is not known here" if key else "a key is needed: send Authorization: Bearer KEY"
                reply = problem(401, "unauthorized", said, request_id=scope.get("state", {}).get("request_id", ""))
                reply.headers["WWW-Authenticate"] = "Bearer"
                await reply(scope, receive, send)
                return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)


def _given_key(header: str) -> str:
    """The key in an Authorization header: a bearer token, or the password of Basic; "" where there is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic" and value.strip():
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return value  # a wrong key, counted as one
    return ""
