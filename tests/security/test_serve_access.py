"""Who may ask what: every route of the app's own list, asked in every way a browser or a stranger could."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from sfumato.serve.security.api_keys import caller_of, key_hash
from support.serving import Served, served

KEY, OTHER_KEY = "a key that nobody guesses", "another that nobody guesses"
HEADERS = {"Authorization": f"Bearer {KEY}"}
OPEN_WITHOUT_KEY = {"/livez", "/readyz"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("open")
    with served(folder, allow_hosts=("pictures.lan",), public_url="https://pictures.example.org") as client:
        yield client


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("locked")
    with served(folder, host="0.0.0.0", keys=(key_hash(KEY), key_hash(OTHER_KEY))) as client:
        yield client


def routes(api: FastAPI) -> list[tuple[str, str]]:
    """Method and path of everything the app answers, with an id that nothing has in the place of each parameter."""
    paths = api.openapi()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return sorted((method, re.sub(r"\{\w+\}", "0", path)) for method, path in [*found, ("GET", "/openapi.json")])


def test_the_list_of_routes_is_whole(client: Served):
    """The schema, which the other tests go by, leaves nothing out."""
    listed = {path for _, path in routes(client.api)}
    assert {"/livez", "/readyz", "/metrics", "/openapi.json", "/api/jobs", "/api/events"} <= listed
    hidden = [route for route in client.api.routes if isinstance(route, APIRoute) and not route.include_in_schema]
    assert not hidden


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:7860"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "pictures.lan.evil.example"},
        {"Host": ""},
    ],
    ids=str,
)
def test_a_name_that_is_not_ours_is_refused_everywhere(client: Served, headers: dict[str, str]):
    for method, path in routes(client.api):
        assert client.request(method, path, headers=headers).status_code == 421, (method, path)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "file://"},
        {"Origin": ""},
        {"Origin": "http://localhost:8188"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "https://pictures.example.org.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
    ids=str,
)
def test_a_page_of_another_origin_is_refused_everywhere(client: Served, headers: dict[str, str]):
    for method, path in routes(client.api):
        reply = client.request(method, path, headers=headers)
        assert reply.status_code == 403, (method, path)
        assert not any(name.startswith("access-control") for name in reply.headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "127.0.0.1:7860"},
        {"Host": "[::1]:7860"},
        {"Host": "192.168.1.5"},
        {"Host": "LOCALHOST:1"},
        {"Host": "studio.localhost"},
        {"Host": "pictures.lan:80"},
        {"Host": "pictures.example.org", "Origin": "https://pictures.example.org"},
        {"Host": "localhost:7860", "Origin": "http://localhost:7860", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    ],
    ids=str,
)
def test_our_own_page_and_programs_are_let_in(client: Served, headers: dict[str, str]):
    assert client.get("/api/jobs", headers=headers).status_code == 200


def test_a_preflight_is_not_answered(client: Served):
    asking = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    reply = client.options("/api/jobs", headers=asking)
    assert reply.status_code == 403
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_without_a_key_nothing_is_answered_but_health(locked: Served):
    for method, path in routes(locked.api):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic "}, {"Authorization": KEY}):
            locked_out = locked.request(method, path, headers=headers).status_code
            assert locked_out in ((200, 503) if path in OPEN_WITHOUT_KEY else (401,)), (method, path)


def test_every_known_key_is_someone_else():
    hashes = [key_hash(KEY), key_hash(OTHER_KEY)]
    assert caller_of(KEY, hashes) != caller_of(OTHER_KEY, hashes) is not None
    assert caller_of("neither of them", hashes) is None


def test_callers_see_only_their_own(tmp_path):
    other = {"Authorization": f"Bearer {OTHER_KEY}"}
    with served(tmp_path, keys=(key_hash(KEY), key_hash(OTHER_KEY))) as client:
        client.headers.update(HEADERS)
        job = client.ended(client.submit()["id"])
        picture = job["pictures"][0]["id"]
        assert client.get(f"/api/pictures/{picture}/full").status_code == 200
        for method, path in (
            ("GET", f"/api/jobs/{job['id']}"),
            ("POST", f"/api/jobs/{job['id']}/cancel"),
            ("DELETE", f"/api/jobs/{job['id']}"),
            ("GET", f"/api/jobs/{job['id']}/events"),
            ("GET", f"/api/pictures/{picture}"),
            ("GET", f"/api/pictures/{picture}/full"),
        ):
            assert client.request(method, path, headers=other).status_code == 404, path
        assert client.get("/api/jobs", headers=other).json()["jobs"] == []
        assert client.get("/api/pictures", headers=other).json()["pictures"] == []
        assert len(client.get("/api/pictures").json()["pictures"]) == 1


TRAVERSAL = (
    "%2e%2e",
    "../index.sqlite3",
    "..%2findex.sqlite3",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "....//",
    "..%5c..%5c",
    "%00",
    "/etc/passwd",
    "jobs/../../lock",
    "'; DROP TABLE jobs; --",
    "a" * 5000,
    "𝒶",
)


@pytest.mark.parametrize("name", TRAVERSAL, ids=lambda name: name[:20])
def test_no_name_becomes_a_path(client: Served, name: str):
    for path in ("/api/jobs/{}", "/api/jobs/{}/events", "/api/pictures/{}", "/api/pictures/{}/full", "/{}"):
        reply = client.get(path.format(name))
        assert reply.status_code in (404, 405), (path, reply.status_code)
        assert b"root:" not in reply.content
        assert b"SQLite" not in reply.content


def test_every_reply_keeps_browsers_in_check(client: Served):
    for path in ("/livez", "/api/jobs", "/nothing"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-request-id"]
