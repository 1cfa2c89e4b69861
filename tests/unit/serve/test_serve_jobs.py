"""Jobs over HTTP: what is accepted, what is refused and how, and what becomes of them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sfumato.errors import OutputError
from sfumato.pipeline.metadata import provenance_of
from sfumato.serve.jobs import dispatch, job_desk
from sfumato.serve.jobs.job_record import Job, MadePicture
from sfumato.serve.workers.fake_worker import CRASH, FAIL
from support.serving import Served, served


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as client:
        yield client


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, seconds=0.05, max_waiting=4) as client:
        yield client


def units_asked(client: Served) -> float:
    """Pictures the worker was asked for since the server started, and has answered."""
    samples = next(iter(client.desk.metrics.units.collect())).samples
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


def test_a_job_becomes_pictures_that_say_how_they_were_made(client: Served):
    accepted = client.submit("a red heart", request={"seed": 7}, count=3)
    assert accepted["state"] == "queued"
    job = client.ended(accepted["id"])
    assert job["state"] == "finished"
    assert [picture["seed"] for picture in job["pictures"]] == [7, 8, 9]
    for picture in job["pictures"]:
        reply = client.get(picture["url"])
        assert reply.headers["content-type"] == "image/png"
        assert hashlib.sha256(reply.content).hexdigest() == picture["sha256"]
        record = provenance_of(reply.content, "picture")
        assert record is not None
        assert (record.request.prompt, record.request.seed) == ("a red heart", picture["seed"])
        again = client.get(picture["url"], headers={"If-None-Match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_a_seed_is_drawn_before_the_job_is_accepted(client: Served):
    seeds = {client.submit()["request"]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_pictures_own_request_makes_it_again(client: Served):
    first = client.ended(client.submit(request={"seed": 3})["id"])
    record = provenance_of(client.get(first["pictures"][0]["url"]).content, "picture")
    assert record is not None
    reply = client.post("/api/jobs", json=record.request.to_dict())
    again = client.ended(reply.json()["id"])
    assert again["request"] == record.request.to_dict()


def test_a_preset_gives_way_to_what_is_said_beside_it(client: Served):
    body = {"request": {"prompt": "a tree", "preset": "turbo", "steps": 3}}
    request = client.ended(client.post("/api/jobs", json=body).json()["id"])["request"]
    assert request["steps"] == 3
    assert request["sampler"] != "plms"


BAD: list[tuple[Any, str]] = [
    ({}, "request"),
    ({"request": {}}, "prompt"),
    ({"request": {"prompt": 3}}, "prompt"),
    ({"request": {"prompt": "x" * 32_001}}, "prompt"),
    ({"request": {"prompt": "x", "stepss": 3}}, "stepss"),
    ({"request": {"prompt": "x", "steps": 151}}, "steps"),
    ({"request": {"prompt": "x", "steps": 0}}, "steps"),
    ({"request": {"prompt": "x", "steps": "many"}}, "steps"),
    ({"request": {"prompt": "x", "width": 63}}, "width"),
    ({"request": {"prompt": "x", "width": 8192, "height": 64}}, None),
    ({"request": {"prompt": "x", "width": 2048, "height": 1024}}, "width"),
    ({"request": {"prompt": "x", "height": 8192}}, "height"),
    ({"request": {"prompt": "x", "upscale": 8}}, "upscale"),
    ({"request": {"prompt": "x", "sampler": "eulre"}}, "sampler"),
    ({"request": {"prompt": "x", "model": "../../etc"}}, "model"),
    ({"request": {"prompt": "x", "model": 3}}, "model"),
    ({"request": {"prompt": "x", "vae": "/etc/passwd"}}, "vae"),
    ({"request": {"prompt": "x", "init_image": {"sha256": "0" * 64, "width": 8, "height": 8}}}, "init_image"),
    ({"request": {"prompt": "x", "noise": "generator"}}, "noise"),
    ({"request": {"prompt": "x", "preset": "fastest"}}, "preset"),
    ({"request": {"prompt": "x", "seed": -1}}, "seed"),
    ({"request": {"prompt": "x", "seed": 2**63 - 1}, "count": 2}, "seed"),
    ({"request": {"prompt": "x", "variation_strength": 2}}, "variation_strength"),
    ({"request": {"prompt": "x"}, "count": 101}, "count"),
    ({"request": {"prompt": "x"}, "count": True}, "count"),
    ({"request": {"prompt": "x"}, "priority": 1e9}, "priority"),
    ({"request": {"prompt": "x"}, "cuont": 1}, "cuont"),
    ({"request": "x"}, "request"),
    ([], "body"),
    ("x", "body"),
]


@pytest.mark.parametrize(("body", "field"), BAD, ids=lambda value: json.dumps(value)[:60])
def test_what_is_wrong_is_refused_by_name_and_touches_nothing(client: Served, body: Any, field: str | None):
    before, kept = units_asked(client), len(list(Path(client.desk.settings.folder, "jobs").iterdir()))
    reply = client.post("/api/jobs", json=body)
    if field is None:  # large, but not too large
        assert reply.status_code == 202
        client.post(f"/api/jobs/{reply.json()['id']}/cancel")
        return
    problem = reply.json()
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["field"]) == (422, field)
    assert problem["detail"] and "\n" not in problem["detail"]
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert len(list(Path(client.desk.settings.folder, "jobs").iterdir())) == kept
    assert units_asked(client) == before


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"request": {"prompt": "x"}}', "text/plain", 422),
        (b"prompt=x", "application/x-www-form-urlencoded", 422),
        (b'{"request": {"prompt": "\\ud800"}}', "application/json", 422),
        (b'{"request": {"prompt": "x", "eta": NaN}}', "application/json", 422),
        (b"[" * 100_000, "application/json", 400),
        (b" " * (2**20 + 1), "application/json", 413),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bodies_that_are_none_are_refused(client: Served, content: bytes, kind: str, status: int):
    reply = client.post("/api/jobs", content=content, headers={"Content-Type": kind})
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
    assert reply.json()["status"] == status


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/jobs?limit=0", "limit"),
        ("/api/jobs?limit=x", "limit"),
        ("/api/jobs?state=done", "state"),
        ("/api/jobs?cursor=../x", "cursor"),
        ("/api/pictures?cursor=abc", "cursor"),
        ("/api/events?after=-1", "after"),
    ],
)
def test_a_wrong_question_is_refused_by_name(client: Served, path: str, field: str):
    reply = client.get(path)
    assert (reply.status_code, reply.json()["field"]) == (422, field)


def test_lists_come_in_pages_newest_first(tmp_path: Path):
    with served(tmp_path) as client:
        ids = [client.ended(client.submit(count=2)["id"])["id"] for _ in range(3)]
        page = client.get("/api/jobs?limit=2").json()
        assert [job["id"] for job in page["jobs"]] == ids[:0:-1]
        rest = client.get(f"/api/jobs?limit=2&cursor={page['next']}").json()
        assert ([job["id"] for job in rest["jobs"]], rest["next"]) == (ids[:1], None)
        found, cursor = [], ""
        while cursor is not None:
            page = client.get(f"/api/pictures?limit=1{cursor and '&cursor=' + cursor}").json()
            found += [picture["id"] for picture in page["pictures"]]
            cursor = page["next"]
        assert found == [f"{job_id}_{number}" for job_id in reversed(ids) for number in (1, 0)]


def test_a_key_used_again_gives_the_same_job(client: Served):
    body = {"request": {"prompt": "once", "steps": 2}}
    headers = {"Idempotency-Key": "once"}
    first = client.post("/api/jobs", json=body, headers=headers)
    again = client.post("/api/jobs", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert first.json()["id"] == again.json()["id"]
    other = client.post("/api/jobs", json={"request": {"prompt": "twice"}}, headers=headers)
    assert (other.status_code, other.json()["type"]) == (422, "urn:sfumato:key-reused")
    for bad in ("", "x" * 256):
        assert client.post("/api/jobs", json=body, headers={"Idempotency-Key": bad}).status_code == 422


def test_fifty_at_once_with_one_key_are_one_job(tmp_path: Path):
    with served(tmp_path) as client, ThreadPoolExecutor(50) as pool:
        body = {"request": {"prompt": "at once", "steps": 1}}
        together = threading.Barrier(50)

        def post(_: int) -> Any:
            together.wait()
            return client.post("/api/jobs", json=body, headers={"Idempotency-Key": "k"})

        replies = list(pool.map(post, range(50)))
        assert {reply.status_code for reply in replies} <= {200, 202, 409}
        assert [reply.status_code for reply in replies].count(202) == 1
        assert all(reply.headers["retry-after"] == "1" for reply in replies if reply.status_code == 409)
        assert len(client.get("/api/jobs").json()["jobs"]) == 1


def test_a_full_queue_takes_no_more_and_all_that_was_taken_is_made(slow: Served):
    running = slow.submit(request={"steps": 10})
    while slow.get(f"/api/jobs/{running['id']}").json()["state"] != "running":
        pass
    waiting = [slow.submit(request={"steps": 1}) for _ in range(4)]
    assert [job["place"] for job in waiting] == [0, 1, 2, 3]
    refused = slow.post("/api/jobs", json={"request": {"prompt": "one more"}})
    assert (refused.status_code, refused.json()["type"]) == (429, "urn:sfumato:queue-full")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert len(list(Path(slow.desk.settings.folder, "jobs").iterdir())) == 5
    assert {slow.ended(job["id"])["state"] for job in [running, *waiting]} == {"finished"}


def test_cancelling_stops_the_picture_and_keeps_those_that_were_made(slow: Served):
    job = slow.submit(request={"steps": 2}, count=100)
    while len(slow.get(f"/api/jobs/{job['id']}").json()["pictures"]) < 2:
        pass
    cancelled = slow.post(f"/api/jobs/{job['id']}/cancel").json()
    assert cancelled["state"] == "cancelled"
    assert slow.post(f"/api/jobs/{job['id']}/cancel").json() == cancelled
    after = slow.ended(slow.submit(request={"steps": 1})["id"])  # the worker is free again
    assert after["state"] == "finished"
    pictures = slow.get(f"/api/jobs/{job['id']}").json()["pictures"]
    assert pictures == cancelled["pictures"]
    assert len(pictures) < 100


def test_a_job_that_waits_is_cancelled_without_the_worker(slow: Served):
    slow.submit(request={"steps": 20})
    waiting = slow.submit()
    before = units_asked(slow)
    assert slow.post(f"/api/jobs/{waiting['id']}/cancel").json()["state"] == "cancelled"
    assert units_asked(slow) == before


def test_deleting_leaves_nothing(client: Served):
    job = client.ended(client.submit("forget me")["id"])
    assert client.delete(f"/api/jobs/{job['id']}").status_code == 204
    assert client.get(f"/api/jobs/{job['id']}").status_code == 404
    assert client.get(job["pictures"][0]["url"]).status_code == 404
    assert not Path(client.desk.settings.folder, "jobs", job["id"]).exists()
    assert not [
        event
        for event in client.desk.store.events_after("local", 0, limit=10**6)
        if "picture" in event.kind and event.job_id == job["id"]
    ]


def test_a_job_is_not_deleted_before_it_ends(slow: Served):
    job = slow.submit(request={"steps": 20})
    assert slow.delete(f"/api/jobs/{job['id']}").status_code == 409


def test_a_picture_that_cannot_be_made_fails_its_job_and_no_other(client: Served):
    failed, next_one = client.submit(FAIL), client.submit()
    job = client.ended(failed["id"])
    assert (job["state"], job["error"]["code"]) == ("failed", "NumericalError")
    assert "NaN in the layer" in job["error"]["detail"]
    assert client.ended(next_one["id"])["state"] == "finished"


def test_a_picture_that_kills_every_worker_fails_its_job_and_no_other(tmp_path: Path):
    with served(tmp_path) as client:
        killer, next_one = client.submit(CRASH), client.submit()
        job = client.ended(killer["id"])
        assert (job["state"], job["error"]["code"]) == ("failed", "worker_lost")
        assert "exit code 9" in job["error"]["detail"]
        assert client.ended(next_one["id"])["state"] == "finished"


def test_no_job_is_taken_on_a_full_disk(client: Served, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"total": 10**12, "free": 10**8})
    monkeypatch.setattr(job_desk.shutil, "disk_usage", lambda _: usage)
    reply = client.post("/api/jobs", json={"request": {"prompt": "x"}})
    assert (reply.status_code, reply.json()["type"]) == (503, "urn:sfumato:storage-full")


def test_a_job_that_cannot_be_written_is_refused_whole(client: Served, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OutputError("the disk is full")

    kept = len(list(Path(client.desk.settings.folder, "jobs").iterdir()))
    for holder in (client.desk.files, client.desk.store):
        with monkeypatch.context() as patch:
            patch.setattr(holder, "promise" if holder is client.desk.files else "add", full)
            reply = client.post("/api/jobs", json={"request": {"prompt": "x"}})
            assert (reply.status_code, reply.json()["type"]) == (503, "urn:sfumato:storage")
    assert len(list(Path(client.desk.settings.folder, "jobs").iterdir())) == kept
    assert client.ended(client.submit()["id"])["state"] == "finished"


def test_a_picture_that_cannot_be_recorded_is_kept_and_recorded_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatch, "_PAUSE", 0.01)
    with served(tmp_path) as client:
        record, failures = client.desk.store.add_picture, []

        def sometimes_full(job: Job, picture: MadePicture) -> bool:
            if len(failures) < 3:
                failures.append(picture)
                raise OutputError("the disk is full")
            return record(job, picture)

        monkeypatch.setattr(client.desk.store, "add_picture", sometimes_full)
        (picture,) = client.ended(client.submit()["id"])["pictures"]
        assert {failure.created for failure in failures} == {picture["created"]}  # the same file, not made again


def test_health_and_metrics(client: Served):
    assert client.get("/livez").status_code == 200
    client.ended(client.submit()["id"])
    assert client.get("/readyz").status_code == 200
    text = client.get("/metrics").text
    assert 'sfumato_units_total{outcome="made"}' in text
    assert 'sfumato_http_requests_total{route="/api/jobs/{job_id}",status="200"}' in text
    client.desk.is_draining = True
    assert client.get("/readyz").status_code == 503
    refused = client.post("/api/jobs", json={"request": {"prompt": "x"}})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    client.desk.is_draining = False
