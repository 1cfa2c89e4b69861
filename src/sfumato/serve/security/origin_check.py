"""Which web pages may ask: ASGI middleware against DNS rebinding and requests forged by pages of other origins.

A browser says where a request comes from in headers that no page can change. A name in `Host` that isn't ours means
that a page's own name was made to point here; an `Origin` that isn't ours means that another page is asking.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sfumato.serve.problems import problem

_READING = ("GET", "HEAD")


class OriginCheck:
    """Refuses a foreign `Host` with 421, a foreign `Origin` or a cross-site fetch with 403.

    `allow_hosts` are names beside localhost (addresses can't be rebound, and are always taken); `public_url` is our own
    origin where a proxy stands in front. No page of another origin may ask: there is no CORS.
    """

    def __init__(self, app: ASGIApp, *, allow_hosts: Sequence[str] = (), public_url: str = "") -> None:
        self._app = app
        self._public_url = public_url
        self._hosts = {_name(name) for name in (*allow_hosts, _without_scheme(public_url)) if name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refused = self._refusal(scope, Headers(scope=scope))
            if refused is not None:
                reply = problem(*refused, request_id=scope.get("state", {}).get("request_id", ""))
                await reply(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str, str] | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own_name(_name(hosts[0])):
            return 421, "unknown-host", "this server isn't known under that name: start it with --allow-host NAME"
        if not self._may_ask(scope, headers):
            return 403, "cross-origin", "a page of another origin may not ask this server"
        return None

    def _is_own_name(self, name: str) -> bool:
        return _is_address(name) or name == "localhost" or name.endswith(".localhost") or name in self._hosts

    def _may_ask(self, scope: Scope, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None and origin != self._public_url and _without_scheme(origin) != headers["host"].lower():
            return False
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            # A link to the page itself is harmless; whatever else another site makes the browser fetch is not.
            visits = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            return visits and scope["path"] == "/" and scope["method"] in _READING
        return True


def _without_scheme(url: str) -> str:
    """`host:port` of an origin; "" for what is none, `null` say, which equals no host."""
    scheme, separator, rest = url.lower().partition("://")
    return rest if separator and scheme in ("http", "https") else ""


def _name(host: str) -> str:
    """The name in `name:port`, `[address]:port` or either without the port, as it is compared."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
