"""The real worker with the embedded model: the same bytes as the command line, cancelled and killed in the middle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command_line import Cli
from support.serving import ServerProcess, events_of, server_process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("real") / "served", seconds=None) as server:
        yield server


def submit(server: ServerProcess, **request: Any) -> dict[str, Any]:
    reply = server.client.post("/api/jobs", json={"request": {"prompt": "a red heart", "seed": 3, **request}})
    assert reply.status_code == 202, reply.text
    return dict(reply.json())


def ended(server: ServerProcess, job: dict[str, Any]) -> dict[str, Any]:
    while (now := server.client.get(f"/api/jobs/{job['id']}").json())["state"] in ("queued", "running"):
        time.sleep(0.05)
    return dict(now)


def picture(server: ServerProcess, job: dict[str, Any]) -> bytes:
    done = ended(server, job)
    assert done["state"] == "finished", done["error"]
    return server.client.get(done["pictures"][0]["url"]).content


def test_a_picture_is_the_one_the_command_line_makes_and_is_seen_on_its_way(
    server: ServerProcess, cli: Cli, tmp_path: Path
):
    job = submit(server, steps=12)
    with server.client.stream("GET", f"/api/jobs/{job['id']}/events?after=0") as reply:
        kinds = [kind for kind, _, _ in events_of(reply.iter_lines())]
    assert kinds[-2:] == ["picture", "finished"]
    assert {"progress", "preview"} <= set(kinds)
    out = tmp_path / "heart.png"
    assert cli("generate", "a red heart", "--seed", "3", "--steps", "12", "--out", str(out)).code == 0
    assert picture(server, job) == out.read_bytes()


def test_cancelling_stops_within_two_steps_and_the_next_job_is_made(server: ServerProcess):
    ended(server, submit(server, steps=2))  # the model is loaded
    long = submit(server, steps=150)
    with server.client.stream("GET", f"/api/jobs/{long['id']}/events") as reply:
        events = events_of(reply.iter_lines())
        step = next(data for kind, _, data in events if kind == "progress")["step"]
        began = time.monotonic()
        assert server.client.post(f"/api/jobs/{long['id']}/cancel").json()["state"] == "cancelled"
        rest = [(kind, data) for kind, _, data in events]
    assert rest[-1][0] == "cancelled"
    following = submit(server, steps=2)
    picture(server, following)
    assert time.monotonic() - began < 30  # 150 steps take longer on a busy machine
    assert all(data["step"] < 100 for kind, data in rest if kind == "progress") and step < 100


def test_a_worker_killed_in_the_middle_is_started_again_and_no_byte_differs(server: ServerProcess):
    undisturbed = picture(server, submit(server, steps=30, prompt="a penguin"))
    again = submit(server, steps=30, prompt="a penguin")
    with server.client.stream("GET", f"/api/jobs/{again['id']}/events") as reply:
        next(kind for kind, _, _ in events_of(reply.iter_lines()) if kind == "progress")
    server.kill_worker()
    assert picture(server, again) == undisturbed


def test_what_the_model_refuses_fails_with_its_reason(server: ServerProcess):
    done = ended(server, submit(server, steps=2, clip_skip=11))
    assert done["state"] == "failed"
    assert done["error"] == {"code": "InvalidRequest", "detail": "clip_skip 11: this model's text encoder has 3 layers"}
